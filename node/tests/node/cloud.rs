//! Metadata services, and what only calls itself one.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use node::cloud::{self, Cloud, Found, Place, Source};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

/// What it does with a connection once it has read the request.
type Manner = fn(&str) -> Told;

enum Told {
    Answer(String),
    /// Says this again and again.
    ForEver(&'static [u8]),
    Nothing,
    Close,
}

async fn serve(manner: Manner) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            tokio::spawn(answer(stream, manner));
        }
    });
    address
}

async fn answer(mut stream: TcpStream, manner: Manner) {
    let mut request = Vec::new();
    while !request.ends_with(b"\r\n\r\n") {
        let mut part = [0; 1024];
        match stream.read(&mut part).await {
            Ok(0) | Err(_) => return,
            Ok(length) => request.extend_from_slice(&part[..length]),
        }
    }
    match manner(&String::from_utf8_lossy(&request).to_lowercase()) {
        Told::Answer(text) => {
            // A hostile one may not be read to its end.
            let _sent = stream.write_all(text.as_bytes()).await;
        }
        Told::ForEver(bytes) => while stream.write_all(bytes).await.is_ok() {},
        Told::Nothing => std::future::pending().await,
        Told::Close => {}
    }
}

fn ok(headers: &str, body: &str) -> Told {
    let length = body.len();
    Told::Answer(format!(
        "HTTP/1.1 200 OK\r\n{headers}Content-Length: {length}\r\n\r\n{body}"
    ))
}

fn refuse() -> Told {
    Told::Answer("HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n".to_owned())
}

fn aws(request: &str) -> Told {
    let has_token = request.contains("x-aws-ec2-metadata-token: secret-1");
    match request.split(' ').next().zip(request.split(' ').nth(1)) {
        Some(("put", "/latest/api/token"))
            if request.contains("x-aws-ec2-metadata-token-ttl-seconds: 60") =>
        {
            ok("", "secret-1")
        }
        Some(("get", "/latest/meta-data/placement/region")) if has_token => ok("", "eu-central-1"),
        Some(("get", "/latest/meta-data/placement/availability-zone")) if has_token => {
            ok("", "eu-central-1a")
        }
        Some(("get", "/latest/meta-data/instance-id")) if has_token => ok("", "i-0abc"),
        _ => refuse(),
    }
}

fn azure(request: &str) -> Told {
    if !request.contains("\r\nmetadata: true") {
        return refuse();
    }
    match request {
        _ if request.starts_with("get /metadata/instance/compute/location?") => {
            ok("", "northeurope")
        }
        _ if request.starts_with("get /metadata/instance/compute/zone?") => ok("", ""),
        _ => refuse(),
    }
}

fn google(request: &str) -> Told {
    let flavor = "Metadata-Flavor: Google\r\n";
    if !request.contains("\r\nmetadata-flavor: google") {
        return refuse();
    }
    match request {
        _ if request.starts_with("get /computemetadata/v1/instance/zone ") => {
            ok(flavor, "projects/12345/zones/europe-west3-a")
        }
        _ if request.starts_with("get /computemetadata/v1/instance/name ") => ok(flavor, "vm-1"),
        _ => refuse(),
    }
}

async fn found(manner: Manner) -> Option<Found> {
    cloud::find(&Source::At(serve(manner).await.to_string())).await
}

fn told(cloud: Cloud, region: &str, zone: &str, instance: Option<&str>) -> Option<Found> {
    Some(Found {
        cloud,
        place: Place {
            region: region.to_owned(),
            zone: zone.to_owned(),
        },
        instance: instance.map(str::to_owned),
    })
}

#[tokio::test]
async fn each_cloud_is_known_by_its_own_service() {
    let expected = told(Cloud::Aws, "eu-central-1", "eu-central-1a", Some("i-0abc"));
    assert_eq!(found(aws).await, expected);
    let expected = told(Cloud::Azure, "northeurope", "", None);
    assert_eq!(found(azure).await, expected);
    let expected = told(
        Cloud::Google,
        "europe-west3",
        "europe-west3-a",
        Some("vm-1"),
    );
    assert_eq!(found(google).await, expected);
}

#[tokio::test]
async fn what_hangs_or_lies_or_never_ends_does_no_harm() {
    let manners: [(&str, Manner); 9] = [
        ("silent", |_| Told::Nothing),
        ("gone", |_| Told::Close),
        ("no http", |_| Told::Answer("220 mail\r\n\r\n".to_owned())),
        ("endless head", |_| Told::ForEver(b"X: y\r\n")),
        ("endless line", |_| Told::ForEver(b"HTTP")),
        ("endless body", |_| {
            Told::ForEver(b"HTTP/1.1 200 OK\r\nMetadata-Flavor: Google\r\n\r\n")
        }),
        ("large", |_| {
            ok("Metadata-Flavor: Google\r\n", &"a".repeat(1 << 20))
        }),
        ("not of that form", |_| {
            ok("Metadata-Flavor: Google\r\n", "<html>\u{1b}[2J</html>")
        }),
        ("cut off", |_| {
            Told::Answer("HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\neu".to_owned())
        }),
    ];
    for (manner, serve) in manners {
        let begun = Instant::now();
        assert_eq!(found(serve).await, None, "{manner}");
        // 300 ms are promised; a busy machine may be late.
        assert!(begun.elapsed() < Duration::from_secs(5), "{manner}");
    }
    assert_eq!(cloud::find(&Source::Off).await, None);
    let nobody = Source::At("127.0.0.1:1".to_owned());
    assert_eq!(cloud::find(&nobody).await, None);
}

#[tokio::test]
async fn one_that_hangs_for_other_clouds_is_still_heard() {
    let manner: Manner = |request| match google(request) {
        Told::Answer(text) if text.starts_with("HTTP/1.1 200") => Told::Answer(text),
        Told::Answer(_) | Told::ForEver(_) | Told::Nothing | Told::Close => Told::Nothing,
    };
    let expected = told(
        Cloud::Google,
        "europe-west3",
        "europe-west3-a",
        Some("vm-1"),
    );
    assert_eq!(found(manner).await, expected);
}

#[tokio::test]
async fn the_answer_comes_in_the_background() {
    let source = Source::At(serve(aws).await.to_string());
    let mut following = cloud::follow(source);
    let found = following.wait_for(Option::is_some).await.unwrap().clone();
    assert_eq!(found.unwrap().place.zone, "eu-central-1a");
    let mut none = cloud::follow(Source::Off);
    assert!(none.wait_for(Option::is_some).await.is_err(), "it is over");
}
