//! Processes that train one model together, each on its part of every batch, over TCP.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::time::{Duration, Instant};

use crate::{Error, Result};

/// What each says first, with its rank and the number of processes.
const HELLO: &[u8; 8] = b"tarn/1\0\0";
/// How long the first process is waited for, and it waits for the others: their pools are looked through meanwhile.
const PATIENCE: Duration = Duration::from_secs(1800);
const PAUSE: Duration = Duration::from_millis(50);
/// The port where no other is given, as torchrun's.
const PORT: u16 = 29500;

/// The processes of a training, or one alone. All exchanges are made by all of them, in the same order.
#[derive(Debug, Default)]
pub struct Group {
    rank: usize,
    /// The first has one to each of the others, in the order of their ranks; the others one to the first.
    links: Vec<TcpStream>,
    world: usize,
}

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
        Group { rank: 0, links: Vec::new(), world: 1 }
    }

    /// Waits until all have found each other; `goes_on` is asked meanwhile.
    pub fn meet(at: &Rendezvous, goes_on: impl Fn() -> bool) -> Result<Group> {
        let failed = |reason: String| Error::Group { rank: at.rank, reason };
        let start = Instant::now();
        let wait = || {
            std::thread::sleep(PAUSE);
            match (goes_on(), start.elapsed() < PATIENCE) {
                (false, _) => Err(Error::Stopped { done: 0, total: at.world as u64 }),
                (_, false) => Err(failed(format!("not all of {} processes came to {}:{}", at.world, at.address, at.port))),
                _ => Ok(()),
            }
        };
        if at.rank > 0 {
            let mut link = loop {
                match TcpStream::connect((at.address.as_str(), at.port)) {
                    Ok(link) => break link,
                    Err(_) => wait()?,
                }
            };
            let hello = [HELLO.as_slice(), &(at.rank as u64).to_le_bytes(), &(at.world as u64).to_le_bytes()].concat();
            let sent = link.set_nodelay(true).and_then(|()| link.write_all(&hello));
            sent.map_err(|e| failed(e.to_string()))?;
            return Ok(Group { rank: at.rank, links: vec![link], world: at.world });
        }
        let listener = TcpListener::bind((at.address.as_str(), at.port))
            .and_then(|listener| listener.set_nonblocking(true).map(|()| listener))
            .map_err(|e| failed(format!("cannot listen at {}:{}: {e}", at.address, at.port)))?;
        let mut links: Vec<Option<TcpStream>> = (1..at.world).map(|_| None).collect();
        while links.iter().any(Option::is_none) {
            match listener.accept() {
                Ok((link, _)) => {
                    let (rank, link) = welcome(link, at.world).map_err(&failed)?;
                    match links.get_mut(rank.wrapping_sub(1)) {
                        Some(place @ None) => *place = Some(link),
                        _ => return Err(failed(format!("two processes say that their RANK is {rank}"))),
                    }
                }
                Err(_) => wait()?,
            }
        }
        Ok(Group { rank: 0, links: links.into_iter().flatten().collect(), world: at.world })
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
        let bytes: Vec<u8> = mine.iter().flat_map(|x| x.to_le_bytes()).collect();
        Ok(self.gather(&bytes)?.iter().flat_map(|part| floats(part)).collect())
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
            let bytes: Vec<u8> = values.iter().flat_map(|x| x.to_le_bytes()).collect();
            if self.rank > 0 {
                self.send(0, &bytes)?;
            }
            for link in 0..if self.rank == 0 { self.links.len() } else { 0 } {
                let theirs = self.receive(link)?;
                values.iter_mut().zip(floats(&theirs)).for_each(|(value, theirs)| *value += theirs);
            }
            let sums = self.broadcast(values.iter().flat_map(|x| x.to_le_bytes()).collect())?;
            values.iter_mut().zip(floats(&sums)).for_each(|(value, sum)| *value = sum);
        }
        Ok(())
    }

    /// What came is nothing that one of us sends.
    pub(crate) fn broken(&self, e: serde_json::Error) -> Error {
        Error::Group { rank: self.rank, reason: format!("what came from another process cannot be read: {e}") }
    }

    fn send(&mut self, link: usize, bytes: &[u8]) -> Result<()> {
        let to = if self.rank == 0 { link + 1 } else { 0 };
        let stream = &mut self.links[link];
        let sent = stream.write_all(&(bytes.len() as u64).to_le_bytes()).and_then(|()| stream.write_all(bytes));
        sent.map_err(|e| Error::Group { rank: self.rank, reason: format!("process {to} went away: {e}") })
    }

    fn receive(&mut self, link: usize) -> Result<Vec<u8>> {
        let from = if self.rank == 0 { link + 1 } else { 0 };
        let stream = &mut self.links[link];
        let mut read = || {
            let mut len = [0; 8];
            stream.read_exact(&mut len)?;
            let mut bytes = Vec::new();
            let len = u64::from_le_bytes(len);
            match stream.take(len).read_to_end(&mut bytes)? as u64 == len {
                true => Ok(bytes),
                false => Err(std::io::ErrorKind::UnexpectedEof.into()),
            }
        };
        read().map_err(|e: std::io::Error| Error::Group { rank: self.rank, reason: format!("process {from} went away: {e}") })
    }
}

/// Who it is that came, if it is one of us.
fn welcome(mut link: TcpStream, world: usize) -> Result<(usize, TcpStream), String> {
    let mut hello = [0; 24];
    link.set_nonblocking(false).and_then(|()| link.set_nodelay(true)).map_err(|e| e.to_string())?;
    link.read_exact(&mut hello).map_err(|e| format!("a process that came went away: {e}"))?;
    let number = |at: usize| u64::from_le_bytes(hello[at..at + 8].try_into().expect("eight bytes")) as usize;
    match (hello.starts_with(HELLO), number(16) == world) {
        (false, _) => Err("what came is no training of this program".into()),
        (_, false) => Err(format!("process {} says that there are {}, expected {world}", number(8), number(16))),
        _ => Ok((number(8), link)),
    }
}

fn floats(bytes: &[u8]) -> impl Iterator<Item = f32> {
    bytes.chunks_exact(4).map(|bytes| f32::from_le_bytes(bytes.try_into().expect("four bytes")))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Runs `work` in every process of a group of threads.
    fn together<T: Send>(world: usize, port: u16, work: impl Fn(Group) -> T + Sync) -> Vec<T> {
        let meet = |rank| {
            let at = Rendezvous { rank, world, address: "127.0.0.1".into(), port };
            work(Group::meet(&at, || true).unwrap())
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
