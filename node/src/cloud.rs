//! Region and zone from the metadata service of the cloud that this machine runs in, if one
//! answers.
//!
//! It is only ever a help for people: nothing waits for it, nothing is decided by it, and what was
//! given when the node joined goes before it. The service is reached in clear at a link-local
//! address that anybody on the segment may pretend to be, so what it says is taken only if it has
//! the form of such a name.

mod ask;

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::timeout;

use crate::state::Membership;
use ask::{Get, Service};

/// All questions together. The service is on this host's own segment or nowhere.
const PATIENCE: Duration = Duration::from_millis(300);
/// The network may come up after the daemon.
const AGAIN: [Duration; 2] = [Duration::from_secs(10), Duration::from_secs(60)];
/// The longest name of a zone so far has 25.
const LONGEST: usize = 64;

/// Whom to ask.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Source {
    /// The address that all three clouds use.
    #[default]
    Usual,
    /// `host:port` of another.
    At(String),
    Off,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cloud {
    Aws,
    Azure,
    Google,
}

/// What a cloud says of this machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    pub cloud: Cloud,
    pub place: Place,
    /// How the cloud names this machine, for the commands that change it.
    pub instance: Option<String>,
}

/// Where a node stands, for people. Empty is unknown.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Place {
    pub region: String,
    pub zone: String,
}

impl Cloud {
    pub const ALL: [Cloud; 3] = [Cloud::Aws, Cloud::Azure, Cloud::Google];

    /// As flags and JSON name it.
    pub fn name(self) -> &'static str {
        match self {
            Cloud::Aws => "aws",
            Cloud::Azure => "azure",
            Cloud::Google => "gcp",
        }
    }
}

impl Place {
    /// What was given at the join, and the cloud's word where nothing was.
    pub fn of(membership: &Membership, found: Option<&Found>) -> Place {
        let given = |given: &String, found: Option<&String>| {
            if given.is_empty() {
                found.cloned().unwrap_or_default()
            } else {
                given.clone()
            }
        };
        let place = found.map(|found| &found.place);
        Place {
            region: given(&membership.region, place.map(|place| &place.region)),
            zone: given(&membership.zone, place.map(|place| &place.zone)),
        }
    }
}

impl fmt::Display for Cloud {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(match self {
            Cloud::Aws => "AWS",
            Cloud::Azure => "Azure",
            Cloud::Google => "Google Cloud",
        })
    }
}

impl FromStr for Source {
    type Err = String;

    fn from_str(text: &str) -> Result<Source, String> {
        match text {
            "auto" => return Ok(Source::Usual),
            "off" => return Ok(Source::Off),
            _ => {}
        }
        let wrong = || {
            "auto, off, or the address of a metadata service, like http://169.254.169.254 or http://127.0.0.1:8080".to_owned()
        };
        let address = text.strip_prefix("http://").ok_or_else(wrong)?;
        let address = address.strip_suffix('/').unwrap_or(address);
        let has_port = address
            .rsplit_once(':')
            .is_some_and(|(_, port)| port.parse::<u16>().is_ok_and(|port| port > 0));
        let address = match has_port && !address.ends_with(']') {
            true => address.to_owned(),
            false => format!("{address}:80"),
        };
        if proto::entry::is_broker_address(&address) {
            Ok(Source::At(address))
        } else {
            Err(wrong())
        }
    }
}

/// Asks in the background. `None` until one has answered, and for ever where there is none; dropping
/// the receiver ends it.
pub fn follow(source: Source) -> watch::Receiver<Option<Found>> {
    let (told, receiver) = watch::channel(None);
    tokio::spawn(async move {
        let mut waits = AGAIN.into_iter();
        loop {
            if let Some(found) = find(&source).await {
                tracing::info!(
                    cloud = %found.cloud,
                    region = %found.place.region,
                    zone = %found.place.zone,
                    "the cloud's metadata service says where this machine is"
                );
                // Whoever asked may have gone.
                let _told = told.send(Some(found));
                return;
            }
            let Some(wait) = waits.next() else {
                return;
            };
            if source == Source::Off {
                return;
            }
            tokio::select! {
                () = tokio::time::sleep(wait) => {}
                () = told.closed() => return,
            }
        }
    });
    receiver
}

/// What one says now; 300 ms at most.
pub async fn find(source: &Source) -> Option<Found> {
    let service = Service::of(source)?;
    let all = async {
        // Each refuses what is meant for the others.
        tokio::select! {
            Some(found) = aws(&service) => Some(found),
            Some(found) = azure(&service) => Some(found),
            Some(found) = google(&service) => Some(found),
            else => None,
        }
    };
    timeout(PATIENCE, all).await.ok().flatten()
}

/// Version 2 only: a session's token first.
async fn aws(service: &Service) -> Option<Found> {
    const TOKEN: &str = "x-aws-ec2-metadata-token";
    let ask = Get {
        method: "PUT",
        path: "/latest/api/token",
        header: ("x-aws-ec2-metadata-token-ttl-seconds", "60"),
        marked_by: None,
    };
    let token = service.text(&ask).await?;
    let get = |path| Get {
        method: "GET",
        path,
        header: (TOKEN, &token),
        marked_by: None,
    };
    let region = get("/latest/meta-data/placement/region");
    let zone = get("/latest/meta-data/placement/availability-zone");
    let instance = get("/latest/meta-data/instance-id");
    let (region, zone, instance) = tokio::join!(
        service.text(&region),
        service.text(&zone),
        service.text(&instance)
    );
    Some(Found {
        cloud: Cloud::Aws,
        place: Place {
            region: name(&region?)?,
            zone: zone.as_deref().and_then(name).unwrap_or_default(),
        },
        instance: instance.as_deref().and_then(name),
    })
}

async fn azure(service: &Service) -> Option<Found> {
    let get = |path| Get {
        method: "GET",
        path,
        header: ("metadata", "true"),
        marked_by: None,
    };
    let region = get("/metadata/instance/compute/location?api-version=2021-02-01&format=text");
    let zone = get("/metadata/instance/compute/zone?api-version=2021-02-01&format=text");
    let instance = get("/metadata/instance/compute/name?api-version=2021-02-01&format=text");
    let (region, zone, instance) = tokio::join!(
        service.text(&region),
        service.text(&zone),
        service.text(&instance)
    );
    Some(Found {
        cloud: Cloud::Azure,
        place: Place {
            region: name(&region?)?,
            // Machines that are in no zone have an empty one.
            zone: zone.as_deref().and_then(name).unwrap_or_default(),
        },
        instance: instance.as_deref().and_then(name),
    })
}

/// Tells `projects/12345/zones/europe-west3-a`.
async fn google(service: &Service) -> Option<Found> {
    const FLAVOR: (&str, &str) = ("metadata-flavor", "Google");
    let get = |path| Get {
        method: "GET",
        path,
        header: FLAVOR,
        marked_by: Some(FLAVOR),
    };
    let zone = get("/computeMetadata/v1/instance/zone");
    let instance = get("/computeMetadata/v1/instance/name");
    let (zone, instance) = tokio::join!(service.text(&zone), service.text(&instance));
    let zone = zone?;
    let zone = name(zone.rsplit('/').next()?)?;
    let (region, _) = zone.rsplit_once('-')?;
    Some(Found {
        cloud: Cloud::Google,
        place: Place {
            region: region.to_owned(),
            zone,
        },
        instance: instance.as_deref().and_then(name),
    })
}

/// Nothing else is a name of a region, a zone or a machine.
fn name(text: &str) -> Option<String> {
    let text = text.trim();
    let is_name = (1..=LONGEST).contains(&text.len())
        && text
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.'));
    is_name.then(|| text.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_source_is_auto_off_or_an_address() {
        let at = |text: &str| Ok(Source::At(text.to_owned()));
        assert_eq!("auto".parse(), Ok(Source::Usual));
        assert_eq!("off".parse(), Ok(Source::Off));
        assert_eq!("http://127.0.0.1:8080".parse(), at("127.0.0.1:8080"));
        assert_eq!("http://metadata/".parse(), at("metadata:80"));
        assert_eq!("http://[fd00:ec2::254]".parse(), at("[fd00:ec2::254]:80"));
        for wrong in [
            "",
            "https://a",
            "http://",
            "127.0.0.1:80",
            "http://a/b",
            "http://a:0",
        ] {
            assert!(wrong.parse::<Source>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn only_what_has_the_form_of_a_name_is_one() {
        assert_eq!(name("eu-central-1a\n").as_deref(), Some("eu-central-1a"));
        for bad in ["", " ", "a b", "<html>", "a\u{1b}[2J", "ü", &"a".repeat(65)] {
            assert_eq!(name(bad), None, "{bad:?}");
        }
    }
}
