//! Logs of volumes, each a connection: who may have a log, and who may not any more.

use mirrord_log::server::{LogServer, ServerConfig};
use mirrord_log::wire::{Regions, Request};

use crate::served::Served;

const TEXT: &str = "8192 disk v 1024";
const TAKE_OVER: &str = "8192 disk v 1024 take_over";
const NOSYNC: &str = "8192 disk v 1024 nosync";

fn ctr(text: &str) -> Request<'_> {
    Request::Ctr { text: text.as_bytes(), again: false }
}

fn again(text: &str) -> Request<'_> {
    Request::Ctr { text: text.as_bytes(), again: true }
}

fn flush(served: &mut Served, client: u64, luid: u64, region: u64) -> String {
    served.answer_to(client, ("v", luid), &Request::Flush(Regions::new(&[region.into()])))
}

/// A log of a volume whose legs are equal, past the time in which an earlier owner might come.
fn served() -> Served {
    let mut served = Served::new();
    served.tick(30);
    assert_eq!(served.answer_to(1, ("v", 1), &ctr(NOSYNC)), "Done");
    assert_eq!(served.answer_to(1, ("v", 1), &Request::Resume), "Done");
    served
}

fn take(served: &mut Served, client: u64, luid: u64, text: &str) -> String {
    served.answer_to(client, ("v", luid), &ctr(text));
    served.answer_to(client, ("v", luid), &Request::Resume)
}

fn sync_count(served: &mut Served, client: u64, luid: u64) -> String {
    served.answer_to(client, ("v", luid), &Request::GetSyncCount)
}

#[test]
fn who_comes_back_has_his_log_and_the_old_connection_has_not() {
    let mut served = served();
    assert_eq!(flush(&mut served, 1, 1, 3), "Done");
    served.held = true;
    let lost = served.say(1, ("v", 1), &Request::Flush(Regions::new(&[4.into()])));
    assert_eq!(served.answer_to(2, ("v", 1), &again(NOSYNC)), "Done");
    served.work();
    assert_eq!(served.answer(lost), None, "nobody is there to hear it");
    // What was still on its way on the old one counts no more.
    let late = [3.into()];
    let late = Request::ClearRegion(Regions::new(&late));
    assert_eq!(served.answer_to(1, ("v", 1), &late), "errno 116");
    assert_eq!(served.answer_to(2, ("v", 1), &Request::Resume), "Done");
    assert_eq!(served.answer_to(2, ("v", 1), &Request::IsClean(3)), "Is(false)");
    served.lose(1);
    served.tick(100);
    assert_eq!(flush(&mut served, 2, 1, 5), "Done");
}

#[test]
fn a_log_in_use_is_given_to_nobody() {
    let mut served = served();
    flush(&mut served, 1, 1, 3);
    assert_eq!(take(&mut served, 2, 2, TEXT), "errno 16");
    served.lose(1);
    served.tick(29);
    assert_eq!(served.answer_to(2, ("v", 2), &Request::Resume), "errno 16", "he may come back");
    served.tick(1);
    assert_eq!(served.answer_to(2, ("v", 2), &Request::Resume), "Done");
    assert_eq!(sync_count(&mut served, 2, 2), "Count(7)", "it is told what was dirty");
    assert_eq!(served.answer_to(2, ("v", 2), &Request::GetResyncWork), "Work(Some(Region(3)))");
    // The first is back, and for good too late.
    for _ in 0..2 {
        assert_eq!(served.answer_to(3, ("v", 1), &again(NOSYNC)), "Done");
        let resumed = served.answer_to(3, ("v", 1), &Request::Resume);
        assert_eq!(resumed, "errno 16");
        assert_eq!(flush(&mut served, 3, 1, 1), "errno 22");
        served.lose(3);
    }
    served.answer_to(2, ("v", 2), &Request::Postsuspend);
    served.answer_to(2, ("v", 2), &Request::Dtr);
    assert_eq!(served.answer_to(4, ("v", 1), &again(NOSYNC)), "Done");
    assert_eq!(served.answer_to(4, ("v", 1), &Request::Resume), "errno 116", "another was there since");
}

#[test]
fn who_says_goodbye_need_not_be_waited_for() {
    let mut served = served();
    flush(&mut served, 1, 1, 2);
    assert_eq!(served.answer_to(1, ("v", 1), &Request::Postsuspend), "Done");
    assert_eq!(served.answer_to(1, ("v", 1), &Request::Postsuspend), "Done", "he did not hear it");
    assert_eq!(served.answer_to(1, ("v", 1), &Request::Dtr), "Done");
    assert_eq!(take(&mut served, 2, 2, TEXT), "Done");
    assert_eq!(sync_count(&mut served, 2, 2), "Count(7)");
}

#[test]
fn whoever_insists_gets_it_and_the_other_is_told() {
    let mut served = served();
    flush(&mut served, 1, 1, 2);
    assert_eq!(take(&mut served, 2, 2, TAKE_OVER), "Done");
    assert_eq!(flush(&mut served, 1, 1, 3), "errno 3");
    assert_eq!(served.answer_to(1, ("v", 1), &again(NOSYNC)), "Done");
    assert_eq!(served.answer_to(1, ("v", 1), &Request::Resume), "errno 16");
}

#[test]
fn a_server_that_was_killed_knows_whose_a_log_is() {
    let mut served = served();
    flush(&mut served, 1, 1, 6);
    served.restart();
    assert_eq!(take(&mut served, 2, 2, TEXT), "errno 16", "the owner may be about to come back");
    assert_eq!(flush(&mut served, 1, 1, 5), "errno 3");
    assert_eq!(served.answer_to(3, ("v", 1), &again(NOSYNC)), "Done");
    assert_eq!(served.answer_to(3, ("v", 1), &Request::Resume), "Done");
    assert_eq!(sync_count(&mut served, 3, 1), "Count(7)");
    served.restart();
    served.tick(30);
    assert_eq!(take(&mut served, 2, 2, TEXT), "Done", "he did not come");
    served.restart();
    assert_eq!(served.answer_to(3, ("v", 1), &again(NOSYNC)), "Done");
    assert_eq!(served.answer_to(3, ("v", 1), &Request::Resume), "errno 116", "and never has it again");
}

#[test]
fn a_connection_that_goes_before_it_used_its_log_leaves_none() {
    let mut served = Served::new();
    served.answer_to(1, ("v", 1), &ctr(TEXT));
    served.held = true;
    served.say(2, ("w", 2), &ctr("8192 disk w 1024"));
    served.lose(1);
    served.lose(2);
    served.work();
    served.tick(30);
    assert_eq!(served.server.logs().count(), 0);
}

#[test]
fn there_are_limits() {
    let mut served = Served::new();
    served.server = LogServer::new(ServerConfig { max_logs: 2, max_regions: 20, ..ServerConfig::default() });
    assert_eq!(served.answer_to(1, ("a", 1), &ctr("8192 core 1024")), "Done");
    assert_eq!(served.answer_to(1, ("b", 2), &ctr("16384 core 1024")), "errno 12", "too many regions");
    assert_eq!(served.answer_to(1, ("b", 2), &ctr("8192 core 1024")), "Done");
    assert_eq!(served.answer_to(1, ("c", 3), &ctr("2048 core 1024")), "errno 12", "too many logs");
    served.answer_to(1, ("a", 1), &Request::Dtr);
    assert_eq!(served.answer_to(1, ("c", 3), &ctr("2048 core 1024")), "Done");
    served.held = true;
    served.answer_to(1, ("c", 3), &Request::Dtr);
    assert_eq!(served.answer_to(1, ("d", 4), &ctr("2048 disk d 1024")), "waits");
    let turned_away =
        (0..5000).filter(|_| served.answer_to(1, ("d", 4), &Request::GetSyncCount) == "errno 105").count();
    assert_eq!(turned_away, 5000 - 4096, "what a busy log holds is limited");
    served.work();
    assert_eq!(served.answers.len(), 4097);
}
