//! Blocks of products on a GPU, where there is one and the work is large.

use std::ops::{Deref, DerefMut};
use std::sync::{Condvar, Mutex, MutexGuard};

use ::gpu::{Arg, Device, Kind, Launch, Matmul, Pointer, bytes_of};
use storage::Stretch;

use crate::exact::Wanted;
use crate::top::{Neighbour, Top};
use crate::{Distance, Error, Result};

/// Which device: `auto` (as without it), `cpu`, `cuda:N`, or `emulated`.
const VARIABLE: &str = "TARN_DEVICE";
/// Operations from which on `auto` takes a GPU: less is done before the data are there.
const WORTH: f64 = 1e11;
/// Rows whose products are made at once, and candidates that are written down.
const ROWS: usize = 1 << 14;
const ROOM: usize = 1 << 22;
/// Products held at once.
const PRODUCTS: usize = 1 << 28;
/// Of the set that vectors are assigned to, and of the vectors.
const SET: usize = 1 << 15;

/// The device and what it holds.
pub(crate) struct Gpu {
    device: Device,
    memory: [(Pointer, usize); 8],
}

/// The GPU while somebody works with it.
pub(crate) struct Lent(Option<Gpu>);

/// Opened by the first who asks; it is not there while somebody works with it, and after it has failed.
static IDLE: Mutex<State> = Mutex::new(State::Closed);
static GIVEN_BACK: Condvar = Condvar::new();

enum State {
    Closed,
    Idle(Box<Gpu>),
    Busy,
    None,
}

fn idle() -> MutexGuard<'static, State> {
    IDLE.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}

/// The GPU for so many operations, when nobody else works with it; none where they are too few, or there is no GPU. One that
/// is named and is not there is an error.
pub(crate) fn gpu(operations: f64) -> Result<Option<Lent>> {
    let named = std::env::var(VARIABLE).unwrap_or_default();
    let auto = is_auto();
    if named == "cpu" || auto && operations < WORTH {
        return Ok(None);
    }
    let mut state = idle();
    while matches!(*state, State::Busy) {
        state = GIVEN_BACK.wait(state).unwrap_or_else(|poisoned| poisoned.into_inner());
    }
    match std::mem::replace(&mut *state, State::Busy) {
        State::Idle(gpu) => return Ok(Some(Lent(Some(*gpu)))),
        State::None if auto => {
            *state = State::None;
            return Ok(None);
        }
        _ => {}
    }
    // An error leaves it to be tried again, unless nobody has asked for it by name.
    match open(&named) {
        Ok(gpu) => Ok(Some(Lent(Some(gpu)))),
        Err(_) if auto => {
            *state = State::None;
            Ok(None)
        }
        Err(e) => {
            *state = State::Closed;
            Err(failed(&e))
        }
    }
}

/// Whether the program chooses the device.
pub(crate) fn is_auto() -> bool {
    std::env::var(VARIABLE).map_or(true, |named| named.is_empty() || named == "auto")
}

fn failed(e: &::gpu::Error) -> Error {
    Error::Gpu { reason: e.to_string() }
}

fn open(named: &str) -> ::gpu::Result<Gpu> {
    let mut device = match named {
        "emulated" => Device::emulated()?,
        "" | "auto" | "cuda" => Device::cuda(0)?,
        named => match named.strip_prefix("cuda:").and_then(|n| n.parse().ok()) {
            Some(ordinal) => Device::cuda(ordinal)?,
            None => {
                let reason = format!("{VARIABLE} is '{named}', expected auto, cpu, cuda, cuda:N or emulated");
                return Err(::gpu::Error::None { reason });
            }
        },
    };
    device.load(&kernel_source())?;
    Ok(Gpu { device, memory: [(0, 0); 8] })
}

/// All kernels for searches.
pub fn kernel_source() -> String {
    format!("{}{}", ::gpu::PRELUDE, include_str!("nearest.cu"))
}

impl Deref for Lent {
    type Target = Gpu;

    fn deref(&self) -> &Gpu {
        self.0.as_ref().expect("given back by drop alone")
    }
}

impl DerefMut for Lent {
    fn deref_mut(&mut self) -> &mut Gpu {
        self.0.as_mut().expect("given back by drop alone")
    }
}

impl Drop for Lent {
    fn drop(&mut self) {
        // One that has failed is closed.
        let gpu = self.0.take().filter(|gpu| gpu.device.check().is_ok());
        *idle() = gpu.map_or(State::Closed, |gpu| State::Idle(Box::new(gpu)));
        GIVEN_BACK.notify_one();
    }
}

impl Gpu {
    /// Memory number `which`, of at least so many bytes.
    fn memory(&mut self, which: usize, bytes: usize) -> Pointer {
        if self.memory[which].1 < bytes {
            if self.memory[which].1 > 0 {
                self.device.free(self.memory[which].0);
            }
            self.memory[which] = (self.device.alloc(bytes + bytes / 4), bytes + bytes / 4);
        }
        self.memory[which].0
    }

    fn upload(&mut self, which: usize, bytes: &[u8]) -> Pointer {
        let at = self.memory(which, bytes.len());
        self.device.write(at, bytes);
        at
    }

    /// `out[m, n] = a[m, dim] · b[n, dim]ᵀ`, in float32.
    fn products(&mut self, out: Pointer, a: Pointer, b: Pointer, [m, n, dim]: [usize; 3]) {
        let (inputs, output) = (Kind::F32, Kind::F32);
        self.device.matmul(Matmul {
            out,
            a,
            b,
            m,
            n,
            k: dim,
            transpose_a: false,
            transpose_b: true,
            inputs,
            output,
            add: None,
            bias: None,
        });
    }

    fn check(&self) -> Result<()> {
        self.device.check().map_err(|e| failed(&e))
    }

    /// Uploads what `near` looks for.
    pub fn look_for(&mut self, wanted: Wanted, norms: &[f32]) {
        self.upload(0, bytes_of(wanted.queries));
        self.upload(1, bytes_of(norms));
    }

    /// As `exact.rs` does with a stretch's rows `which` on a core: those that are near go into `found`.
    pub fn near(&mut self, stretch: &Stretch, which: &[usize], wanted: Wanted, mut bounds: Vec<f32>, found: &mut [Top]) -> Result<()> {
        let (dim, n) = (stretch.dim, bounds.len());
        let (queries, norms) = (self.memory(0, 0), self.memory(1, 0));
        let metric = match wanted.distance {
            Distance::Cosine => 0,
            Distance::Dot => 1,
            Distance::L2 => 2,
        };
        let room = ROOM.max(n);
        // Without bounds all rows are near: few at first, which make bounds.
        let most = (PRODUCTS / n).clamp(1, ROWS);
        let mut at_once = (room / n).clamp(1, most);
        let mut next = 0;
        while next < which.len() {
            let rows = &which[next..which.len().min(next + at_once)];
            let mut stored = Vec::with_capacity(rows.len() * dim * if stretch.half { 2 } else { 4 });
            rows.iter().filter_map(|&i| stretch.vector(i)).for_each(|vector| stored.extend_from_slice(vector));
            let (m, stored) = (rows.len(), self.upload(2, &stored));
            let (widened, squares) = (self.memory(3, 4 * m * dim), self.memory(4, 4 * m));
            let unit = i32::from(wanted.distance == Distance::Cosine);
            let args =
                [Arg::Pointer(widened), Arg::Pointer(squares), Arg::Pointer(stored), Arg::Int(i32::from(stretch.half)), Arg::Int(unit)];
            let args = [&args[..], &[Arg::Int(m as i32), Arg::Int(dim as i32)]].concat();
            self.device.launch("widen", Launch::new(m.div_ceil(8), 256), &args);
            let products = self.memory(5, 4 * n * m);
            self.products(products, queries, widened, [n, m, dim]);
            let limits = self.upload(6, bytes_of(&bounds));
            // The count, then what is found.
            let list = self.memory(7, 16 + 12 * room);
            self.device.zero(list, 16);
            let pointers = [list + 16, list].map(Arg::Pointer);
            let inputs = [products, squares, norms, limits].map(Arg::Pointer);
            let keeps_nan = i32::from(wanted.within == f32::INFINITY);
            let numbers = [n as i32, m as i32, metric, keeps_nan].map(Arg::Int);
            let args = [&pointers[..], &[Arg::Int(room as i32)], &inputs, &numbers].concat();
            self.device.launch("keep_near", Launch::new((n * m).div_ceil(256), 256), &args);
            let mut count = [0; 4];
            self.device.read(list, &mut count);
            let count = u32::from_le_bytes(count) as usize;
            if count > room {
                // More than there is room for: the same again with fewer rows.
                at_once = (m / 2).max(1);
                self.check()?;
                continue;
            }
            let mut near = vec![0; 12 * count];
            self.device.read(list + 16, &mut near);
            self.check()?;
            for near in near.chunks_exact(12) {
                let word = |i: usize| [near[4 * i], near[4 * i + 1], near[4 * i + 2], near[4 * i + 3]];
                let (query, row) = (u32::from_le_bytes(word(0)) as usize, u32::from_le_bytes(word(1)) as usize);
                found[query].push(Neighbour { distance: f32::from_le_bytes(word(2)), row: stretch.address(rows[row]) });
            }
            bounds.iter_mut().zip(found.iter()).for_each(|(bound, top)| *bound = bound.min(top.bound()));
            next += m;
            at_once = (2 * at_once).min(most);
        }
        Ok(())
    }

    /// As `assign`: the place of the largest product less `minus` for each of `vectors[n, dim]`, and that.
    pub fn best(&mut self, vectors: &[f32], set: &[f32], dim: usize, minus: &[f32]) -> Result<Vec<(u32, f32)>> {
        let n = vectors.len() / dim;
        let vectors = self.upload(0, bytes_of(vectors));
        let (places, scores) = (self.memory(1, 4 * n), self.memory(2, 4 * n));
        for (i, part) in set.chunks(SET * dim).enumerate() {
            let (start, m) = (i * SET, part.len() / dim);
            let part = self.upload(3, bytes_of(part));
            let minus = match minus.is_empty() {
                true => 0,
                false => self.upload(4, bytes_of(&minus[start..start + m])),
            };
            let products = self.memory(5, 4 * n * m);
            self.products(products, vectors, part, [n, m, dim]);
            let pointers = [places, scores, products, minus].map(Arg::Pointer);
            let numbers = [m as i32, start as i32, i32::from(i == 0)].map(Arg::Int);
            self.device.launch("best_of_rows", Launch::new(n, m.next_multiple_of(32).min(256) as u32), &[&pointers[..], &numbers].concat());
        }
        let (mut at, mut best) = (vec![0; 4 * n], vec![0; 4 * n]);
        self.device.read(places, &mut at);
        self.device.read(scores, &mut best);
        self.check()?;
        let word = |bytes: &[u8]| [bytes[0], bytes[1], bytes[2], bytes[3]];
        let pairs = at.chunks_exact(4).zip(best.chunks_exact(4));
        Ok(pairs.map(|(at, best)| (u32::from_le_bytes(word(at)), f32::from_le_bytes(word(best)))).collect())
    }
}
