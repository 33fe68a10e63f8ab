//! The whole life of a volume as a user without any privilege.

use std::fs;
use std::os::unix::fs::PermissionsExt;

use crate::rig::{Rig, binary, everybody_may_use_fuse, is_root, is_ublk, try_sh};

const SCRIPT: &str = r#"
set -e
mirrord() { "$MIRRORD" "$@"; }
mirrord create --legs a b --size 32MiB --name v --mount "$PWD/vol" >/dev/null
head -c 5000000 /dev/urandom >data
dd if=data of=vol bs=64k conv=notrunc,fsync status=none
kill -9 "$(mirrord status v --json | tr -d ' ,' | sed -n 's/.*"pid":\([0-9]*\).*/\1/p' | head -1)"
mirrord start v >/dev/null
mirrord wait v >/dev/null
cmp -n 5000000 data vol
mirrord stop v >/dev/null
cmp -n 33554432 a b
echo all went well
"#;

#[test]
fn a_plain_user_can_do_everything() {
    if is_ublk() {
        println!("SKIP: a block device of a plain user: needs the udev rule");
        return;
    }
    let rig = Rig::new();
    let folder = rig.path("");
    for path in [folder.clone(), rig.path("run"), rig.path("state")] {
        fs::set_permissions(&path, fs::Permissions::from_mode(0o777)).unwrap();
    }
    fs::write(rig.path("script"), SCRIPT).unwrap();
    let (binary, script) = (binary(), rig.path("script"));
    let mut args: Vec<&str> = Vec::new();
    if is_root() {
        args.extend(["setpriv", "--reuid", "65534", "--regid", "65534", "--clear-groups"]);
        let reach = [&args[1..], &["test", "-x", &binary, "-a", "-w", folder.to_str().unwrap()]].concat();
        if !try_sh(args[0], &reach).status.success() {
            println!("SKIP: a volume of a plain user: nobody cannot reach the build folder");
            return;
        }
        if !everybody_may_use_fuse("a volume of a plain user") {
            return;
        }
    }
    args.extend(["env", "-C", folder.to_str().unwrap()]);
    let set = |name: &str, value: &str| format!("{name}={value}");
    let (runtime, state) = (rig.path("run/nobody"), rig.path("state/nobody"));
    let variables = [
        set("MIRRORD", &binary),
        set("MIRRORD_RUNTIME_DIR", runtime.to_str().unwrap()),
        set("MIRRORD_STATE_DIR", state.to_str().unwrap()),
    ];
    args.extend(variables.iter().map(String::as_str));
    args.extend(["bash", script.to_str().unwrap()]);
    let output = try_sh(args[0], &args[1..]);
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{}: {error}", output.status);
    assert_eq!(output.stdout, b"all went well\n", "{error}");
}
