//! What is measured: the bare path, Causeway and its rivals.

use std::path::PathBuf;

use ::tests::wireguard::{Implementation, Program};
use anyhow::{Result, bail};
use clap::Args;
use serde::{Serialize, Serializer};

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Subject {
    /// The same path with plain routes and no tunnel.
    Raw,
    Tunnel(Implementation),
}

pub(crate) const CAUSEWAY: Subject = Subject::Tunnel(Implementation::Causeway);
pub(crate) const WIREGUARD_GO: Subject = Subject::Tunnel(Implementation::WireguardGo);
pub(crate) const BORINGTUN_CLI: Subject = Subject::Tunnel(Implementation::BoringtunCli);
pub(crate) const GOTATUN: Subject = Subject::Tunnel(Implementation::Gotatun);
pub(crate) const RIVALS: [Subject; 3] = [WIREGUARD_GO, BORINGTUN_CLI, GOTATUN];
const ALL: [Subject; 5] = [Subject::Raw, CAUSEWAY, WIREGUARD_GO, BORINGTUN_CLI, GOTATUN];

impl Subject {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Subject::Raw => "raw",
            Subject::Tunnel(implementation) => implementation.name(),
        }
    }

    pub(crate) fn parse(name: &str) -> Result<Subject, String> {
        let known = ALL.into_iter().find(|subject| subject.name() == name);
        known.ok_or_else(|| {
            let names: Vec<&str> = ALL.into_iter().map(Subject::name).collect();
            format!("no such subject; there are {}", names.join(", "))
        })
    }
}

impl Serialize for Subject {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.name())
    }
}

/// A subject of this run and where its program is.
#[derive(Clone, Debug)]
pub(crate) struct Contender {
    pub(crate) subject: Subject,
    pub(crate) program: Option<Program>,
}

#[derive(Args, Clone, Debug)]
pub(crate) struct Choice {
    /// What to measure, in this order; by default everything that is found
    #[arg(long, value_delimiter = ',', value_parser = Subject::parse)]
    subjects: Vec<Subject>,
    #[command(flatten)]
    programs: Programs,
}

/// Where the programs are.
#[derive(Args, Clone, Debug)]
pub(crate) struct Programs {
    /// The causeway program; by default the release build, brought up to date
    #[arg(long, env = "CAUSEWAY_BIN", value_name = "PATH")]
    causeway: Option<PathBuf>,
    /// The wireguard-go program; by default ../shared/peers/wireguard-go*.deb, then PATH
    #[arg(long, env = "WIREGUARD_GO", value_name = "PATH")]
    wireguard_go: Option<PathBuf>,
    /// The boringtun-cli program; by default from PATH
    #[arg(long, env = "BORINGTUN_CLI", value_name = "PATH")]
    boringtun_cli: Option<PathBuf>,
    /// The gotatun program; by default from PATH
    #[arg(long, env = "GOTATUN", value_name = "PATH")]
    gotatun: Option<PathBuf>,
}

impl Choice {
    /// Finds the programs. One that was asked for by name must be there; of the others, those
    /// that are missing are named.
    pub(crate) fn contenders(&self) -> Result<Vec<Contender>> {
        let everything = self.subjects.is_empty();
        let wanted = if everything { &ALL[..] } else { &self.subjects };
        let mut found = Vec::new();
        for &subject in wanted {
            match self.programs.contender(subject) {
                Ok(contender) => found.push(contender),
                Err(why) if everything && subject != CAUSEWAY => {
                    eprintln!("NOT MEASURED: {}: {why:#}", subject.name());
                }
                Err(why) => return Err(why),
            }
        }
        if found.is_empty() {
            bail!("nothing to measure");
        }
        Ok(found)
    }
}

impl Programs {
    pub(crate) fn contender(&self, subject: Subject) -> Result<Contender> {
        let program = match subject {
            Subject::Raw => None,
            Subject::Tunnel(implementation) => Some(self.program(implementation)?),
        };
        Ok(Contender { subject, program })
    }

    fn program(&self, implementation: Implementation) -> Result<Program> {
        let named = match implementation {
            Implementation::Causeway => &self.causeway,
            Implementation::WireguardGo => &self.wireguard_go,
            Implementation::BoringtunCli => &self.boringtun_cli,
            Implementation::Gotatun => &self.gotatun,
        };
        let path = match named {
            Some(path) if path.is_file() => path.clone(),
            Some(path) => bail!("{} is no file", path.display()),
            None => implementation.locate()?,
        };
        Ok(Program {
            implementation,
            path,
            arguments: Vec::new(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_subject_is_known_by_its_name() {
        for subject in ALL {
            assert_eq!(Subject::parse(subject.name()), Ok(subject));
        }
        assert!(
            Subject::parse("openvpn")
                .unwrap_err()
                .contains("wireguard-go")
        );
    }
}
