//! Test cases that need a kernel of their own. `tests/vm/run` boots one for each and has it run this program
//! with the case's name; it reads what a case asks for from `guest needs`. Elsewhere this does nothing.

mod boot;
mod cases;
mod devices;
mod hung;
mod integration;
mod killed;
mod log_writes;
mod peers;
#[path = "../../integration/rig/mod.rs"]
mod rig;
mod volume;

use cases::{Case, case};

const CASES: &[Case] = &[
    case("boot", boot::a_guest_has_what_cases_need).smoke(),
    case("ublk-module", boot::ublk_has_its_control_device).smoke(),
    case("guest-killed", killed::what_was_flushed_survives_the_machine).disks(1, "64M").kills(2).smoke(),
    case("fuse-volume", volume::a_volume_survives_its_daemon).smoke(),
    case("plain-user", volume::a_plain_user_has_a_volume).plain_user().smoke(),
    case("dm-mirror", peers::dm_mirror_mirrors).smoke(),
    case("md-raid1", peers::md_raid1_mirrors),
    case("hung-unprivileged", hung::an_unprivileged_daemon_outlives_a_leg_that_hangs).timeout(600),
    case("log-writes", log_writes::ext4_is_whole_at_every_flush),
    case("integration-cli", || integration::run("cli")).disks(1, "8G").timeout(600),
    case("integration-crash", || integration::run("crash")).disks(1, "8G").timeout(900),
    case("integration-full-disk", || integration::run("full_disk")).disks(1, "8G"),
    case("integration-unprivileged", || integration::run("unprivileged")).disks(1, "8G"),
];

fn main() {
    let argument = std::env::args().nth(1).unwrap_or_default();
    if argument == "needs" {
        CASES.iter().for_each(|case| println!("{case}"));
    } else if let Some(case) = CASES.iter().find(|case| case.name == argument) {
        (case.run)();
    } else {
        println!("{} cases need a kernel of their own: tests/vm/run [CASE..]", CASES.len());
    }
}
