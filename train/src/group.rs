//! Processes that train one model together, each on its part of every batch, over TCP.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crate::checkpoint::{f32_bytes, floats};
use crate::{Error, Result};

/// What each says first, with its rank and the number of processes.
const HELLO: &[u8; 8] = b"tarn/1\0\0";
/// How long the first process is waited for, and it waits for the others: their pools are looked through meanwhile.
const PATIENCE: Duration = Duration::from_secs(1800);
const PAUSE: Duration = Duration::from_millis(50);
/// How often it is looked whether to stop, while another process is waited for.
const LOOK: Duration = Duration::from_millis(200);
/// How long one that came may take to say who it is.
const GREETING: Duration = Duration::from_secs(5);
/// The port where no other is given, as torchrun's.
const PORT: u16 = 29500;

/// The processes of a training, or one alone. All exchanges are made by all of them, in the same order.
#[derive(Debug)]
pub struct Group {
    rank: usize,
    /// The first has one to each of the others, in the order of their ranks; the others one to the first.
    links: Vec<TcpStream>,
    world: usize,
    /// Ends an exchange that another process keeps waiting.
    stop: &'static AtomicBool,
}

static NEVER: AtomicBool = AtomicBool::new(false);

/// Where the processes find each other: what torchrun sets for each.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rendezvous {
    pub rank: usize,
    pub world: usize,
    pub address: String,
    pub port: u16,
}

impl Rendezvous {
    /// From `RANK`, `WORLD_SIZE`, `MASTER_ADDR` and `MASTER_PORT`; none where there is one process alone. The port used is
    /// the one behind `MASTER_PORT`: torchrun's own store listens at that.
    pub fn from_environment() -> Result<Option<Rendezvous>> {
        let variable = |name: &'static str| std::env::var(name).ok().filter(|value| !value.is_empty());
        let number = |name: &'static str, value: String| {
            let wrong = || Error::Environment { name, value: value.clone(), expected: "a whole number" };
            value.trim().parse::<usize>().map_err(|_| wrong())
        };
        let Some(world) = variable("WORLD_SIZE") else { return Ok(None) };
        let world = number("WORLD_SIZE", world)?;
        if world <= 1 {
            return Ok(None);
        }
        let missing = |name: &'static str, expected: &'static str| Error::Environment { name, value: String::new(), expected };
        let rank = number("RANK", variable("RANK").ok_or_else(|| missing("RANK", "this process's number, from 0"))?)?;
        if rank >= world {
            return Err(Error::Environment { name: "RANK", value: rank.to_string(), expected: "less than WORLD_SIZE" });
        }
        let port = match variable("MASTER_PORT") {
            Some(port) => number("MASTER_PORT", port)?,
            None => PORT.into(),
        };
        let too_large = || Error::Environment { name: "MASTER_PORT", value: port.to_string(), expected: "a port below 65535" };
        let port = u16::try_from(port + 1).map_err(|_| too_large())?;
        Ok(Some(Rendezvous { rank, world, address: variable("MASTER_ADDR").unwrap_or_else(|| "127.0.0.1".into()), port }))
    }
}

impl Group {
    /// One process.
    pub fn alone() -> Group {
        Group { rank: 0, links: Vec::new(), world: 1, stop: &NEVER }
    }

    /// Waits until all have found each other. `stop` ends that, and every exchange later.
    pub fn meet(at: &Rendezvous, stop: &'static AtomicBool) -> Result<Group> {
        let (rank, world) = (at.rank, at.world);
        let failed = |reason: String| Error::Group { rank, reason };
        let start = Instant::now();
        let wait = |e: std::io::Error| {
            std::thread::sleep(PAUSE);
            match (stop.load(Ordering::Relaxed), start.elapsed() < PATIENCE) {
                (true, _) => Err(Error::Stopped { done: 0, total: world as u64 }),
                (_, false) => Err(failed(format!("not all of {world} processes came to {}:{}: {e}", at.address, at.port))),
                _ => Ok(()),
            }
        };
        if at.rank > 0 {
            let mut link = loop {
                match TcpStream::connect((at.address.as_str(), at.port)) {
                    Ok(link) => break link,
                    Err(e) => wait(e)?,
                }
            };
            let hello = [HELLO.as_slice(), &(at.rank as u64).to_le_bytes(), &(at.world as u64).to_le_bytes()].concat();
            let sent = link.write_all(&hello).and_then(|()| ready(&link));
            sent.map_err(|e| failed(e.to_string()))?;
            return Ok(Group { rank, links: vec![link], world, stop });
        }
        // A name may stand for an address that others do not reach this machine by.
        let own = ["localhost", "127.0.0.1", "::1"].contains(&at.address.as_str());
        let listener = TcpListener::bind((if own { at.address.as_str() } else { "0.0.0.0" }, at.port))
            .and_then(|listener| listener.set_nonblocking(true).map(|()| listener))
            .map_err(|e| failed(format!("cannot listen at {}:{}: {e}", at.address, at.port)))?;
        let mut links: Vec<Option<TcpStream>> = (1..at.world).map(|_| None).collect();
        while links.iter().any(Option::is_none) {
            match listener.accept() {
                Ok((link, _)) => {
                    // Whoever else knocks at a port is sent away.
                    let Some((rank, link)) = welcome(link, at.world).map_err(&failed)? else { continue };
                    match links.get_mut(rank.wrapping_sub(1)) {
                        Some(place @ None) => *place = Some(link),
                        _ => return Err(failed(format!("two processes say that their RANK is {rank}"))),
                    }
                }
                Err(e) => wait(e)?,
            }
        }
        Ok(Group { rank, links: links.into_iter().flatten().collect(), world, stop })
    }

    pub fn rank(&self) -> usize {
        self.rank
    }

    /// The number of processes.
    pub fn world(&self) -> usize {
        self.world
    }

    /// What each process gave, by rank.
    pub fn gather(&mut self, mine: &[u8]) -> Result<Vec<Vec<u8>>> {
        if self.world == 1 {
            return Ok(vec![mine.to_vec()]);
        }
        if self.rank > 0 {
            self.send(0, mine)?;
            return (0..self.world).map(|_| self.receive(0)).collect();
        }
        let mut all = vec![mine.to_vec()];
        for link in 0..self.links.len() {
            all.push(self.receive(link)?);
        }
        for link in 0..self.links.len() {
            for part in &all {
                self.send(link, part)?;
            }
        }
        Ok(all)
    }

    /// The same for numbers, one after another.
    pub fn gather_values(&mut self, mine: &[f32]) -> Result<Vec<f32>> {
        Ok(floats(&self.gather(f32_bytes(mine))?.concat()))
    }

    /// What the first gives, at all of them.
    pub fn broadcast(&mut self, of_first: Vec<u8>) -> Result<Vec<u8>> {
        if self.rank > 0 {
            return self.receive(0);
        }
        (0..self.links.len()).try_for_each(|link| self.send(link, &of_first))?;
        Ok(of_first)
    }

    /// The sums over all processes, added in the order of their ranks: the same bits everywhere.
    pub fn sum(&mut self, values: &mut [f32]) -> Result<()> {
        // In pieces, so that nobody holds all of the others' values.
        for values in values.chunks_mut(1 << 20) {
            if self.rank > 0 {
                self.send(0, f32_bytes(values))?;
            }
            for link in 0..if self.rank == 0 { self.links.len() } else { 0 } {
                let theirs = self.receive(link)?;
                values.iter_mut().zip(floats(&theirs)).for_each(|(value, theirs)| *value += theirs);
            }
            let sums = self.broadcast(f32_bytes(values).to_vec())?;
            values.iter_mut().zip(floats(&sums)).for_each(|(value, sum)| *value = sum);
        }
        Ok(())
    }

    /// What came is nothing that one of us sends.
    pub(crate) fn broken(&self, e: serde_json::Error) -> Error {
        Error::Group { rank: self.rank, reason: format!("what came from another process cannot be read: {e}") }
    }

    fn send(&mut self, link: usize, bytes: &[u8]) -> Result<()> {
        for mut bytes in [&(bytes.len() as u64).to_le_bytes()[..], bytes] {
            while !bytes.is_empty() {
                let sent = self.links[link].write(bytes);
                bytes = &bytes[self.moved(link, sent)?..];
            }
        }
        Ok(())
    }

    fn receive(&mut self, link: usize) -> Result<Vec<u8>> {
        let mut len = [0; 8];
        self.fill(link, &mut len)?;
        let mut bytes = Vec::new();
        let len = u64::from_le_bytes(len) as usize;
        while bytes.len() < len {
            let from = bytes.len();
            bytes.resize(len.min(from + (1 << 24)), 0);
            self.fill(link, &mut bytes[from..])?;
        }
        Ok(bytes)
    }

    fn fill(&mut self, link: usize, mut bytes: &mut [u8]) -> Result<()> {
        while !bytes.is_empty() {
            let got = self.links[link].read(bytes);
            let n = self.moved(link, got)?;
            bytes = &mut bytes[n..];
        }
        Ok(())
    }

    /// Bytes that went through a link, none where it was only waited for.
    fn moved(&self, link: usize, bytes: std::io::Result<usize>) -> Result<usize> {
        use std::io::ErrorKind::{Interrupted, TimedOut, WouldBlock};
        let other = if self.rank == 0 { link + 1 } else { 0 };
        let gone = |why: String| Error::Group { rank: self.rank, reason: format!("process {other} went away: {why}") };
        match bytes {
            Ok(0) => Err(gone("it closed the connection".into())),
            Ok(n) => Ok(n),
            Err(e) if matches!(e.kind(), Interrupted | TimedOut | WouldBlock) => match self.stop.load(Ordering::Relaxed) {
                true => Err(Error::Stopped { done: 0, total: self.world as u64 }),
                false => Ok(0),
            },
            Err(e) => Err(gone(e.to_string())),
        }
    }
}

/// A link that never waits so long that a stop is not seen.
fn ready(link: &TcpStream) -> std::io::Result<()> {
    link.set_nodelay(true)?;
    link.set_read_timeout(Some(LOOK))?;
    link.set_write_timeout(Some(LOOK))
}

/// Who it is that came, none if it is none of us.
fn welcome(mut link: TcpStream, world: usize) -> Result<Option<(usize, TcpStream)>, String> {
    let mut hello = [0; 24];
    let greeted =
        link.set_nonblocking(false).and_then(|()| link.set_read_timeout(Some(GREETING))).and_then(|()| link.read_exact(&mut hello));
    if greeted.is_err() || !hello.starts_with(HELLO) {
        return Ok(None);
    }
    let number = |at: usize| u64::from_le_bytes(hello[at..at + 8].try_into().expect("eight bytes")) as usize;
    if number(16) != world {
        return Err(format!("process {} says that there are {}, expected {world}", number(8), number(16)));
    }
    ready(&link).map_err(|e| e.to_string())?;
    Ok(Some((number(8), link)))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Runs `work` in every process of a group of threads.
    fn together<T: Send>(world: usize, port: u16, work: impl Fn(Group) -> T + Sync) -> Vec<T> {
        let meet = |rank| {
            let at = Rendezvous { rank, world, address: "127.0.0.1".into(), port };
            work(Group::meet(&at, &NEVER).unwrap())
        };
        let meet = &meet;
        std::thread::scope(|scope| {
            let threads: Vec<_> = (0..world).map(|rank| scope.spawn(move || meet(rank))).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect()
        })
    }

    fn free_port() -> u16 {
        TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
    }

    #[test]
    fn three_exchange() {
        let results = together(3, free_port(), |mut group| {
            let rank = group.rank() as f32;
            let mut sums: Vec<f32> = (0..3 << 19).map(|i| rank + (i % 7) as f32).collect();
            group.sum(&mut sums).unwrap();
            let first = group.broadcast(vec![group.rank() as u8; 2]).unwrap();
            (group.gather_values(&[rank, 10.0 * rank]).unwrap(), sums[0], sums[(3 << 19) - 1], first, group.gather(&[]).unwrap().len())
        });
        let end = 3.0 + 3.0 * (((3 << 19) - 1) % 7) as f32;
        assert!(results.iter().all(|result| *result == (vec![0.0, 0.0, 1.0, 10.0, 2.0, 20.0], 3.0, end, vec![0, 0], 3)), "{results:?}");
    }

    #[test]
    fn one_that_goes_away_is_told_of() {
        let results = together(2, free_port(), |mut group| match group.rank() {
            0 => Some(group.gather(&[1]).unwrap_err().to_string()),
            _ => None,
        });
        assert!(results[0].as_ref().unwrap().contains("process 1 went away"), "{results:?}");
    }
}
