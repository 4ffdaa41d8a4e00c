//! Where a site is, as its cloud's metadata service tells: in the record, and wherever a site is
//! shown. Flags go before it.

#![cfg(test)]
#![forbid(unsafe_code)]

use std::io::{Read as _, Write as _};
use std::net::TcpListener;

use anyhow::Result;
use serde_json::Value;
use tests::broker::command::{self, causeway};
use tests::broker::within;
use tests::lab::{Namespace, skip, wait_for};
use tests::mesh::{Mesh, Nat, PATIENCE, Plan};

const ONE: Plan = Plan {
    gateways: 1,
    nat: Nat::None,
};
const SERVICE: &str = "127.0.0.1:8169";

/// Answers as Google's does, until the test ends.
fn serve_metadata(namespace: &Namespace) -> Result<()> {
    let listener = namespace.within(|| TcpListener::bind(SERVICE))??;
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let Ok(mut stream) = stream else { return };
            let mut request = [0; 2048];
            let length = stream.read(&mut request).unwrap_or(0);
            let request = String::from_utf8_lossy(&request[..length]).into_owned();
            let body = match request.split(' ').nth(1) {
                Some("/computeMetadata/v1/instance/zone") => "projects/1/zones/europe-west3-a",
                Some("/computeMetadata/v1/instance/name") => "gate",
                _ => "",
            };
            let head = match body {
                "" => "HTTP/1.1 404 Not Found",
                _ => "HTTP/1.1 200 OK\r\nMetadata-Flavor: Google",
            };
            let length = body.len();
            // A gateway that is stopped does not wait for it.
            let _sent = write!(stream, "{head}\r\nContent-Length: {length}\r\n\r\n{body}");
        }
    });
    Ok(())
}

fn ask(namespace: &Namespace, words: &[&str]) -> String {
    let mut asked = within(namespace.name(), &causeway());
    asked.args(words);
    let said = command::run(asked, None).unwrap();
    said.expect_success().unwrap().out
}

#[test]
fn region_and_zone_of_the_cloud_are_shown_wherever_a_site_is() {
    if skip("region_and_zone_of_the_cloud", &["nft"]) {
        return;
    }
    let mut mesh = Mesh::at_rest("place", &[ONE, ONE]).unwrap();
    serve_metadata(&mesh.sites[0].gateways[0].namespace).unwrap();
    let metadata = format!("http://{SERVICE}");
    mesh.gateway(0, 0).arguments = vec!["--metadata".to_owned(), metadata];
    mesh.gateway(1, 0).arguments = vec!["--metadata".to_owned(), "off".to_owned()];
    mesh.start_gateways().unwrap();
    mesh.wait_until_up(PATIENCE).unwrap();
    let (near, far) = (&mesh.sites[0].gateways[0], &mesh.sites[1].gateways[0]);
    let knows = || {
        let link = far.link(&near.name);
        link.is_ok_and(|link| link["region"] == "europe-west3")
    };
    wait_for("the other site knows the region", PATIENCE, knows).unwrap();
    assert_eq!(far.link(&near.name).unwrap()["zone"], "europe-west3-a");
    let status = near.status().unwrap();
    assert_eq!(status["region"], "europe-west3");
    assert_eq!(status["zone"], "europe-west3-a");
    assert_eq!(far.status().unwrap()["region"], "", "nobody said");

    let runtime = near.runtime.to_str().unwrap();
    let page = ask(
        &near.namespace,
        &["status", "--wait", "--runtime-dir", runtime],
    );
    assert!(page.contains("europe-west3, europe-west3-a"), "{page}");
    let state = near.state.to_str().unwrap();
    let list = |words: &[&str]| {
        let words = [words, &["--state-dir", state]].concat();
        ask(&near.namespace, &words)
    };
    let name = mesh.sites[0].name.as_str();
    for words in [
        &["site", "list"][..],
        &["site", "show", name],
        &["node", "list"],
    ] {
        let shown = list(words);
        // The region by itself and as part of the zone.
        assert_eq!(
            shown.matches("europe-west3").count(),
            2,
            "{words:?}: {shown}"
        );
        assert!(shown.contains("europe-west3-a"), "{words:?}: {shown}");
    }
    let sites: Value = serde_json::from_str(&list(&["site", "list", "--json"])).unwrap();
    assert_eq!(sites[0]["regions"], serde_json::json!(["europe-west3"]));
    assert_eq!(sites[1]["regions"], serde_json::json!([]));
    mesh.watch.assert_clean();
}
