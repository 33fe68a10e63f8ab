//! Test cases that need a kernel of their own. `tests/vm/run` boots one for each and has it run this program
//! with the case's name; it reads what a case asks for from `guest needs`. Elsewhere this does nothing.

mod boot;
mod cases;
mod devices;
mod faults;
mod hung;
mod integration;
mod killed;
mod log_serve;
mod log_writes;
mod peers;
#[path = "../../integration/rig/mod.rs"]
mod rig;
mod ublk;
mod volume;

use cases::{Case, case};

const CASES: &[Case] = &[
    case("boot", boot::a_guest_has_what_cases_need).smoke(),
    case("ublk-module", boot::ublk_has_its_control_device).smoke(),
    case("guest-killed", killed::what_was_flushed_survives_the_machine)
        .disks(1, "64M")
        .kills(2)
        .smoke()
        .takes(40),
    case("fuse-volume", volume::a_volume_survives_its_daemon).smoke(),
    case("plain-user", volume::a_plain_user_has_a_volume).plain_user().smoke(),
    case("dm-mirror", peers::dm_mirror_mirrors).smoke(),
    case("md-raid1", peers::md_raid1_mirrors),
    case("hung-unprivileged", hung::an_unprivileged_daemon_outlives_a_leg_that_hangs).timeout(900).takes(90),
    case("log-writes", log_writes::ext4_is_whole_at_every_flush),
    case("ublk-killed", ublk::killed::users_notice_nothing).timeout(1200).takes(150),
    case("ublk-killed-few", ublk::killed::users_notice_nothing_shortly).smoke(),
    case("ublk-killed-full", ublk::killed::with_every_tag_in_flight),
    case("ublk-ext4", ublk::file_system::ext4).smoke(),
    case("ublk-xfs", ublk::file_system::xfs),
    case("ublk-block-device", ublk::block_device::is_a_block_device).smoke(),
    case("ublk-upgrade", ublk::upgrade::daemons_change_under_load).smoke().takes(50),
    case("ublk-waiting", ublk::upgrade::a_waiting_device_is_taken_away),
    case("ublk-resize", ublk::resize::a_device_grows_under_load).smoke().takes(50),
    case("ublk-4kn", ublk::blocks::the_largest_block_wins),
    case("ublk-fence", ublk::fence::late_writes_come_before_the_next_daemon).takes(60),
    case("ublk-overlap", ublk::same_bytes::writes_overlap_across_queues),
    case("ublk-changing-buffer", ublk::same_bytes::a_buffer_changes_in_flight).takes(60),
    case("ublk-hardened", ublk::hardened::a_daemon_is_protected).smoke(),
    case("ublk-stop-under-load", ublk::hardened::a_stop_under_load),
    case("ublk-memory-pressure", ublk::hardened::memory_is_short).memory("512M").disks(1, "2G").takes(100),
    case("ublk-plain-user", ublk::plain_user::has_a_block_device),
    case("ublk-no-driver", ublk::refused::without_the_driver_a_file_is_served),
    case("ublk-does-not-fit", ublk::refused::a_device_that_does_not_fit_is_left_waiting),
    case("ublk-taken-away", ublk::refused::a_device_that_is_taken_away),
    case("ublk-power-cut", faults::power_cut::every_moment_is_survived).smoke().timeout(1200).takes(150),
    case("split-power-cut", faults::split_cut::every_moment_of_splits_is_survived).timeout(1200).takes(250),
    case("ublk-guest-killed", faults::machine::flushed_data_survives_the_machine)
        .disks(5, "48M")
        .kills(10)
        .takes(120),
    case("ublk-medium-errors", faults::medium::a_bad_block_is_written_anew),
    case("kernel-reads-our-log", faults::kernel_log::each_reads_the_others_log).smoke(),
    case("ublk-flakey", faults::flakey::a_leg_fails_and_is_mended).smoke().takes(80),
    case("log-core", log_serve::lives::a_core_log).smoke(),
    case("log-disk", log_serve::lives::a_log_on_disk).smoke(),
    case("log-killed", log_serve::killed::nothing_is_lost).timeout(1200).takes(160),
    case("log-killed-few", log_serve::killed::nothing_is_lost_shortly).smoke().takes(90),
    case("log-minute", log_serve::killed::a_minute_without).timeout(900).takes(180),
    case("log-machine", log_serve::machine::only_what_is_dirty_is_resynced)
        .disks(3, "48M")
        .kills(3)
        .smoke()
        .takes(80),
    case("log-refused", log_serve::refused::what_makes_no_sense).smoke(),
    case("log-hangs", log_serve::faults::a_log_that_hangs).smoke().takes(60),
    case("log-fails", log_serve::faults::a_log_that_fails).takes(60),
    case("log-durable", log_serve::faults::marks_are_durable).smoke(),
    case("log-mark-kept", log_serve::marks::a_mark_outlives_the_server),
    case("log-replaced", log_serve::marks::a_server_is_replaced),
    case("log-notes-lost", log_serve::forgotten::without_notes_nothing_is_taken_for_in_sync),
    case("log-removed-meanwhile", log_serve::forgotten::mirrors_that_went_meanwhile),
    case("log-resync-writes", log_serve::resync::writers_do_not_wait),
    case("log-resync-swapped", log_serve::resync::a_swap_copies_nothing_twice),
    case("log-leg-fails", log_serve::resync::what_a_leg_missed_is_copied_to_it),
    case("log-returns", log_serve::answers::who_comes_back_is_answered).smoke().takes(40),
    case("log-inactive-first", log_serve::answers::an_inactive_table_is_asked_first),
    case("log-read-only", log_serve::answers::a_log_that_became_read_only),
    case("log-device-goes", log_serve::answers::a_log_device_goes_with_its_mirror),
    case("log-lvm-header", log_serve::answers::a_log_device_that_lvm_made),
    case("log-clustered", log_serve::answers::clustered_logs),
    case("log-strangers", log_serve::strangers::nobody_else_is_listened_to),
    case("log-pvmove", log_serve::swaps::legs_move_under_load),
    case("log-grows", log_serve::swaps::a_mirror_grows_and_shrinks),
    case("log-large", log_serve::faults::a_large_log_is_written_in_parts).takes(80),
    case("log-many", log_serve::scale::many_mirrors).memory("3G").timeout(900).takes(120),
    case("integration-full-disk", || integration::run("full_disk")).disks(1, "8G").takes(60),
    case("integration-cli-ublk", || integration::run_with_ublk("cli"))
        .disks(1, "8G")
        .timeout(1200)
        .takes(300),
    case("integration-crash-ublk", || integration::run_with_ublk("crash"))
        .disks(1, "8G")
        .timeout(1200)
        .takes(300),
    case("integration-scrub-ublk", || integration::run_with_ublk("scrub"))
        .disks(1, "8G")
        .timeout(900)
        .takes(180),
    case("integration-split-ublk", || integration::run_with_ublk("split"))
        .disks(1, "8G")
        .timeout(900)
        .takes(200),
    case("integration-legs-ublk", || integration::run_with_ublk("legs"))
        .disks(1, "8G")
        .timeout(900)
        .takes(200),
    case("integration-split-serve-ublk", || integration::run_with_ublk("split_serve"))
        .disks(1, "8G")
        .takes(100),
    case("integration-full-disk-ublk", || integration::run_with_ublk("full_disk")).disks(1, "8G").takes(60),
    case("integration-unprivileged", || integration::run("unprivileged")).disks(1, "8G").takes(60),
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
