//! A real etcd of one or three members on loopback addresses of its own.

use std::net::{IpAddr, SocketAddr};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result};

use super::{Directory, look, own_address};
use crate::lab::{Process, find_program, skip_or_fail, wait_for};

const CLIENTS: u16 = 2379;
const PEERS: u16 = 2380;
/// On a busy machine an election takes a few rounds.
const START: Duration = Duration::from_secs(60);

pub struct Etcd {
    directory: Directory,
    members: Vec<Member>,
}

struct Member {
    address: IpAddr,
    process: Option<Process>,
    starts: u32,
}

impl Member {
    fn clients(&self) -> SocketAddr {
        SocketAddr::new(self.address, CLIENTS)
    }
}

/// Whether the test that calls must stop because there is no etcd.
pub fn missing() -> bool {
    let thread = std::thread::current();
    let test = thread.name().unwrap_or("a test with etcd");
    find_program("etcd").is_none() && skip_or_fail(test, "the program etcd is not on PATH")
}

impl Etcd {
    pub fn start(members: usize) -> Result<Etcd> {
        let members = (0..members)
            .map(|_| Member {
                address: own_address(),
                process: None,
                starts: 0,
            })
            .collect();
        let mut etcd = Etcd {
            directory: Directory::new("etcd")?,
            members,
        };
        for number in 0..etcd.members.len() {
            etcd.start_member(number)?;
        }
        wait_for("etcd answers", START, || etcd.is_healthy())?;
        Ok(etcd)
    }

    /// As `--store` wants it.
    pub fn url(&self, prefix: &str) -> String {
        let endpoints: Vec<String> = self
            .members
            .iter()
            .map(|member| member.clients().to_string())
            .collect();
        format!("etcd://{}/{prefix}", endpoints.join(","))
    }

    pub fn start_member(&mut self, number: usize) -> Result<()> {
        let cluster: Vec<String> = self
            .members
            .iter()
            .enumerate()
            .map(|(number, member)| format!("m{number}=http://{}:{PEERS}", member.address))
            .collect();
        let data = self.directory.path().join(format!("data-{number}"));
        let member = &mut self.members[number];
        let clients = format!("http://{}:{CLIENTS}", member.address);
        let peers = format!("http://{}:{PEERS}", member.address);
        let mut command = Command::new(find_program("etcd").context("etcd is not on PATH")?);
        command
            .args(["--name", &format!("m{number}")])
            .arg("--data-dir")
            .arg(data)
            .args(["--listen-client-urls", &clients])
            .args(["--advertise-client-urls", &clients])
            .args(["--listen-peer-urls", &peers])
            .args(["--initial-advertise-peer-urls", &peers])
            .args(["--initial-cluster", &cluster.join(",")])
            .args(["--log-level", "error"]);
        member.starts += 1;
        let log = format!("m{number}-{}.log", member.starts);
        member.process = Some(Process::spawn(command, self.directory.path().join(log))?);
        Ok(())
    }

    /// Kills a member (-9).
    pub fn kill_member(&mut self, number: usize) {
        if let Some(process) = self.members[number].process.take() {
            process.kill();
        }
    }

    /// Every member answers and has a leader.
    pub fn is_healthy(&self) -> bool {
        (0..self.members.len()).all(|number| self.is_healthy_member(number))
    }

    pub fn is_healthy_member(&self, number: usize) -> bool {
        look::get(self.members[number].clients(), "/health")
            .is_ok_and(|(_, body)| body.contains(r#""health":"true""#))
    }

    /// The number of the member that leads.
    pub fn leader(&self) -> Result<usize> {
        let leads = |member: &Member| {
            let path = "/v3/maintenance/status";
            let (_, body) = look::post(member.clients(), path, "{}").ok()?;
            let start = body.find('{')?;
            let end = body.rfind('}')?;
            let told: serde_json::Value = serde_json::from_str(&body[start..=end]).ok()?;
            Some(told.get("leader")? == told.get("header")?.get("member_id")?)
        };
        let leader = self
            .members
            .iter()
            .position(|member| leads(member).unwrap_or(false));
        leader.context("no member of etcd says that it leads")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn three_members_go_on_when_one_is_killed_and_it_comes_back() {
        if missing() {
            return;
        }
        let mut etcd = Etcd::start(3).unwrap();
        etcd.kill_member(1);
        assert!(!etcd.is_healthy());
        wait_for("another leads", START, || {
            etcd.leader().is_ok_and(|leader| leader != 1)
        })
        .unwrap();
        etcd.start_member(1).unwrap();
        wait_for("etcd is whole again", START, || etcd.is_healthy()).unwrap();
        assert!(etcd.url("x").starts_with("etcd://127."));
    }
}
