//! Everything that a fuzzer ever found worth keeping is tried again on every run.

use std::fs;
use std::path::Path;

fn replay(target: &str, body: fn(&[u8])) {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("fuzz/corpus")
        .join(target);
    let mut count = 0;
    for entry in fs::read_dir(&directory).expect("the corpus is committed") {
        let path = entry.expect("a directory can be listed").path();
        // Shown only if the body panics.
        eprintln!("{}", path.display());
        body(&fs::read(&path).expect("an input can be read"));
        count += 1;
    }
    assert!(
        count >= 10,
        "{} holds only {count} inputs",
        directory.display()
    );
}

#[test]
fn frames_from_the_tun_survive_being_cut_and_joined() {
    replay("tun_input", tests::fuzz::tun_input);
}

#[test]
fn what_leaves_for_a_link_fits_it_and_carries_the_same_bytes() {
    replay("fitted", tests::fuzz::fitted);
}

#[test]
fn what_arrives_on_the_port_opens_to_what_was_sealed_once_or_not_at_all() {
    replay("udp_input", tests::fuzz::udp_input);
}

#[test]
fn what_is_said_to_the_configuration_socket_makes_a_whole_state_or_none() {
    replay("config_socket", tests::fuzz::config_socket);
}

#[test]
fn an_answer_that_is_read_is_written_so_that_it_reads_the_same() {
    replay("answer", tests::fuzz::answer);
}

#[test]
fn a_call_that_is_read_is_written_so_that_it_reads_the_same() {
    replay("call", tests::fuzz::call);
}

#[test]
fn a_ledger_entry_has_one_form() {
    replay("entry", tests::fuzz::entry);
}

#[test]
fn frames_do_not_depend_on_the_pieces_they_arrive_in() {
    replay("frame_reader", tests::fuzz::frame_reader);
}

#[test]
fn a_hello_is_what_its_bytes_begin_with() {
    replay("hello", tests::fuzz::hello);
}

#[test]
fn agents_and_gateways_bear_whoever_lies_to_them() {
    replay("lan", tests::fuzz::lan);
}

#[test]
fn ledgers_with_the_same_entries_agree_in_whatever_order_they_came() {
    replay("ledger", tests::fuzz::ledger);
}

#[test]
fn a_ledger_file_that_is_read_is_written_so_that_it_reads_the_same() {
    replay("ledger_text", tests::fuzz::ledger_text);
}

#[test]
fn a_mesh_takes_no_member_but_the_true_one() {
    replay("member", tests::fuzz::member);
}

#[test]
fn a_record_has_one_form() {
    replay("record", tests::fuzz::record);
}

#[test]
fn no_datagram_of_the_reflector_is_made_without_its_key() {
    replay("reflector", tests::fuzz::reflector);
}

#[test]
fn no_datagram_of_the_relay_is_made_without_its_key() {
    replay("relay", tests::fuzz::relay);
}

#[test]
fn a_token_that_is_read_is_the_line_that_was_pasted() {
    replay("token", tests::fuzz::token);
}
