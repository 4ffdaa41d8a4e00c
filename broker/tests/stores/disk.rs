//! A disk that loses power, fills up, fails or panics when told to.

use std::io;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use redb::StorageBackend;

pub(crate) const SECTOR: usize = 512;

#[derive(Debug, Default)]
pub(crate) struct TestDisk(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    /// As a reader sees it.
    now: Vec<u8>,
    /// As it is for certain after a loss of power.
    synced: Vec<u8>,
    /// Since the last sync.
    unsynced: Vec<Change>,
    syncs: u64,
    writes: u64,
    /// Writes and syncs until the power goes.
    power: Option<u64>,
    /// Syncs until one fails, and all after it.
    healthy_syncs: Option<u64>,
    is_full: bool,
    is_read_only: bool,
    panics: bool,
    sync_time: Duration,
}

#[derive(Clone, Debug)]
enum Change {
    Write { offset: usize, data: Vec<u8> },
    Length(usize),
}

/// Small and repeatable.
#[derive(Clone, Debug)]
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn new(seed: u64) -> Random {
        Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    pub(crate) fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % bound.max(1)
    }
}

impl TestDisk {
    pub(crate) fn new(bytes: Vec<u8>) -> Arc<TestDisk> {
        let disk = TestDisk::default();
        {
            let mut state = disk.state();
            state.synced.clone_from(&bytes);
            state.now = bytes;
        }
        Arc::new(disk)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap()
    }

    pub(crate) fn bytes(&self) -> Vec<u8> {
        self.state().now.clone()
    }

    pub(crate) fn syncs(&self) -> u64 {
        self.state().syncs
    }

    pub(crate) fn writes(&self) -> u64 {
        self.state().writes
    }

    pub(crate) fn power_goes_after(&self, operations: u64) {
        self.state().power = Some(operations);
    }

    pub(crate) fn syncs_fail_after(&self, syncs: u64) {
        self.state().healthy_syncs = Some(syncs);
    }

    pub(crate) fn set_full(&self, is_full: bool) {
        self.state().is_full = is_full;
    }

    pub(crate) fn set_read_only(&self) {
        self.state().is_read_only = true;
    }

    pub(crate) fn set_panics(&self) {
        self.state().panics = true;
    }

    pub(crate) fn set_sync_time(&self, time: Duration) {
        self.state().sync_time = time;
    }

    /// What the power's loss leaves: what was synced, and any of the sectors written since, in
    /// any order.
    pub(crate) fn after_power_loss(&self, random: &mut Random) -> Vec<u8> {
        let state = self.state();
        let mut pieces = Vec::new();
        for change in &state.unsynced {
            match change {
                Change::Length(length) => pieces.push(Change::Length(*length)),
                Change::Write { offset, data } => {
                    let mut at = *offset;
                    while at < offset + data.len() {
                        let end = (at / SECTOR + 1) * SECTOR;
                        let end = end.min(offset + data.len());
                        pieces.push(Change::Write {
                            offset: at,
                            data: data[at - offset..end - offset].to_vec(),
                        });
                        at = end;
                    }
                }
            }
        }
        let mut bytes = state.synced.clone();
        // Nothing, everything, or a part; in order or not.
        let kept = [0, 100, 50, 90, 10][random.below(5) as usize];
        if random.below(2) == 0 {
            for at in (1..pieces.len()).rev() {
                pieces.swap(at, random.below(at as u64 + 1) as usize);
            }
        }
        for piece in pieces {
            if random.below(100) >= kept {
                continue;
            }
            match piece {
                Change::Length(length) => bytes.resize(length, 0),
                Change::Write { offset, data } => {
                    let end = offset + data.len();
                    if bytes.len() < end {
                        bytes.resize(end, 0);
                    }
                    bytes[offset..end].copy_from_slice(&data);
                }
            }
        }
        bytes
    }
}

/// Numbers of Linux: EIO, ENOSPC, EROFS.
impl State {
    fn spend(&mut self) -> io::Result<()> {
        match &mut self.power {
            Some(0) => Err(io::Error::from_raw_os_error(5)),
            Some(left) => {
                *left -= 1;
                Ok(())
            }
            None => Ok(()),
        }
    }

    fn may_write(&mut self) -> io::Result<()> {
        self.spend()?;
        if self.is_read_only {
            return Err(io::Error::from_raw_os_error(30));
        }
        if self.is_full {
            return Err(io::Error::from_raw_os_error(28));
        }
        Ok(())
    }
}

impl StorageBackend for TestDisk {
    fn len(&self) -> io::Result<u64> {
        Ok(self.state().now.len() as u64)
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let state = self.state();
        if state.panics {
            drop(state);
            panic!("a page is not as it was");
        }
        let offset = usize::try_from(offset).unwrap();
        match state.now.get(offset..offset + out.len()) {
            Some(bytes) => out.copy_from_slice(bytes),
            None => return Err(io::ErrorKind::UnexpectedEof.into()),
        }
        Ok(())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        let mut state = self.state();
        state.may_write()?;
        let length = usize::try_from(len).unwrap();
        state.now.resize(length, 0);
        state.unsynced.push(Change::Length(length));
        Ok(())
    }

    fn sync_data(&self) -> io::Result<()> {
        let mut state = self.state();
        state.spend()?;
        match &mut state.healthy_syncs {
            Some(0) => return Err(io::Error::from_raw_os_error(5)),
            Some(left) => *left -= 1,
            None => {}
        }
        state.syncs += 1;
        let unsynced = std::mem::take(&mut state.unsynced);
        let mut synced = std::mem::take(&mut state.synced);
        for change in unsynced {
            match change {
                Change::Length(length) => synced.resize(length, 0),
                Change::Write { offset, data } => {
                    synced[offset..offset + data.len()].copy_from_slice(&data);
                }
            }
        }
        state.synced = synced;
        let time = state.sync_time;
        drop(state);
        std::thread::sleep(time);
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        let mut state = self.state();
        state.may_write()?;
        state.writes += 1;
        let offset = usize::try_from(offset).unwrap();
        let end = offset + data.len();
        if state.now.len() < end {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        state.now[offset..end].copy_from_slice(data);
        state.unsynced.push(Change::Write {
            offset,
            data: data.to_vec(),
        });
        Ok(())
    }
}
