//! Callers that never say who they are, and frames that mean nothing.

use std::time::{Duration, Instant};

use proto::frame::MAX_FRAME;
use proto::message::Request;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::cast::{Actor, Authority, Host, Terms};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_honest_join_gets_in_past_thousands_that_only_connect() {
    let mut authority = Authority::new();
    let ticket = authority.grant(Terms::site("berlin"));
    let host = Host::start(&mut authority);
    let mut silent = Vec::new();
    for _ in 0..3000 {
        silent.push(TcpStream::connect(host.serving.listen).await.unwrap());
    }
    let begun = Instant::now();
    let (mut actor, mut client) = Actor::join(&host, &ticket, "gate").await;
    client.publish(actor.member()).await.unwrap();
    assert!(begun.elapsed() < Duration::from_secs(2));
    assert!(host.metric("waiting").await <= 1024);
    let crowded_out = host.metric(r#"closed_total{reason="crowded_out"}"#).await;
    assert!(crowded_out > 0);
}

#[tokio::test]
async fn who_says_nothing_or_says_it_too_slowly_is_cut_off() {
    let mut authority = Authority::new();
    let host = Host::start(&mut authority);
    let mut stream = TcpStream::connect(host.serving.listen).await.unwrap();
    let begun = Instant::now();
    let mut byte = [0];
    // A TLS record that never ends.
    stream.write_all(&[0x16, 3, 1, 2, 0]).await.unwrap();
    let read = loop {
        tokio::select! {
            read = stream.read(&mut byte) => break read,
            () = tokio::time::sleep(Duration::from_secs(1)) => {
                drop(stream.write_all(&[1]).await);
            }
        }
    };
    assert!(!matches!(read, Ok(length) if length > 0));
    assert!((4..20).contains(&begun.elapsed().as_secs()));
    let mut client = host.connect().await;
    client.wait_until_cut().await;
}

#[tokio::test]
async fn a_stranger_gets_nothing_but_a_no() {
    let mut authority = Authority::new();
    let host = Host::start(&mut authority);
    for request in [
        Request::ListNodes { after: None },
        Request::Reflect,
        Request::Relay { peers: Vec::new() },
        Request::PutLedger {
            entries: Vec::new(),
        },
        Request::Ledger { heads: Vec::new() },
    ] {
        let mut client = host.connect().await;
        assert!(client.call(request).await.is_err());
        client.wait_until_cut().await;
    }
}

#[tokio::test]
async fn frames_that_are_too_long_or_cannot_be_read_end_the_connection() {
    let mut authority = Authority::new();
    let ticket = authority.grant(Terms::site("berlin"));
    let host = Host::start(&mut authority);
    let mut client = host.connect().await;
    client.send_bytes(&[0; MAX_FRAME]).await.ok();
    client.wait_until_cut().await;
    let (_, mut client) = Actor::join(&host, &ticket, "gate").await;
    client.send_bytes(&[0xff; 64]).await.unwrap();
    client.wait_until_cut().await;
}
