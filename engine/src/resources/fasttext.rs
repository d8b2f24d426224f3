//! Language identification by fastText's models, `.bin` and `.ftz`.
//! Follows the published implementation (v0.9.2): dictionary, subwords, product quantisation, hierarchical softmax.

use std::collections::HashMap;
use std::io::{self, Read};

/// A supervised fastText model, held as float32 also where it was quantised.
pub(crate) struct FastText {
    dim: usize,
    min_n: usize,
    max_n: usize,
    word_ngrams: usize,
    buckets: u64,
    words: HashMap<Box<[u8]>, u32>,
    labels: Vec<Box<str>>,
    /// Which hashed n-grams were kept, and where; `None` where all were.
    kept: Option<HashMap<u32, u32>>,
    /// `[words + n-grams, dim]`
    input: Vec<f32>,
    /// `[labels, dim]`; under hierarchical softmax the inner nodes, one fewer.
    output: Vec<f32>,
    head: Head,
    /// For each word the sum of its row and those of its n-grams, and how many rows those are.
    sums: Vec<f32>,
    sum_rows: Vec<u32>,
}

enum Head {
    /// Left and right child of each inner node, from `labels` on; the last is the root.
    Tree(Vec<[u32; 2]>),
    Softmax,
    /// Independent labels (negative sampling, one-versus-all).
    Sigmoid,
}

/// Room that is used again from text to text.
#[derive(Default)]
pub(crate) struct Scratch {
    hidden: Vec<f32>,
    hashes: Vec<u32>,
    padded: Vec<u8>,
}

const MAGIC: i32 = 793_712_314;
const VERSIONS: [i32; 2] = [11, 12];
const SUPERVISED: i32 = 3;
const END_OF_LINE: &[u8] = b"</s>";
const LABEL: &str = "__label__";
/// Centroids of each part of a product quantiser.
const CENTROIDS: usize = 256;
/// Models whose words' sums would take more floats than this do without them.
const MOST_SUMS: usize = 1 << 26;

fn wrong(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what.to_string())
}

/// Reads numbers of a file whose length bounds what it may claim.
struct Reader<R> {
    inner: R,
    left: u64,
}

impl<R: Read> Reader<R> {
    fn bytes<const N: usize>(&mut self) -> io::Result<[u8; N]> {
        let mut bytes = [0; N];
        self.inner.read_exact(&mut bytes)?;
        self.left = self.left.saturating_sub(N as u64);
        Ok(bytes)
    }

    fn i32(&mut self) -> io::Result<i32> {
        Ok(i32::from_le_bytes(self.bytes()?))
    }

    fn i64(&mut self) -> io::Result<i64> {
        Ok(i64::from_le_bytes(self.bytes()?))
    }

    fn flag(&mut self) -> io::Result<bool> {
        Ok(self.bytes::<1>()?[0] != 0)
    }

    /// A count of things of at least `size` bytes each.
    fn count(&mut self, n: i64, size: u64) -> io::Result<usize> {
        match u64::try_from(n) {
            Ok(n) if n.checked_mul(size).is_some_and(|bytes| bytes <= self.left) => Ok(n as usize),
            _ => Err(wrong("it claims more than it holds")),
        }
    }

    fn raw(&mut self, n: usize) -> io::Result<Vec<u8>> {
        self.count(n as i64, 1)?;
        let mut bytes = vec![0; n];
        self.inner.read_exact(&mut bytes)?;
        self.left = self.left.saturating_sub(n as u64);
        Ok(bytes)
    }

    fn floats(&mut self, n: usize) -> io::Result<Vec<f32>> {
        self.count(n as i64, 4)?;
        Ok(self.raw(n * 4)?.as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect())
    }

    /// A string and the zero behind it.
    fn string(&mut self) -> io::Result<Vec<u8>> {
        let mut bytes = Vec::new();
        loop {
            match self.bytes::<1>()? {
                [0] => return Ok(bytes),
                [byte] => bytes.push(byte),
            }
        }
    }

    fn size(&mut self) -> io::Result<usize> {
        let n = self.i32()?;
        self.count(i64::from(n), 0)
    }

    /// A matrix of `dim` columns, row by row.
    fn matrix(&mut self, dim: usize) -> io::Result<Vec<f32>> {
        let (rows, columns) = (self.i64()?, self.i64()?);
        let rows = self.count(rows, dim as u64 * 4)?;
        if columns != dim as i64 {
            return Err(wrong("a matrix is not as wide as the model"));
        }
        self.floats(rows * dim)
    }

    /// A quantised matrix, its numbers looked up.
    fn quantised(&mut self, dim: usize) -> io::Result<Vec<f32>> {
        let has_norms = self.flag()?;
        let (rows, columns) = (self.i64()?, self.i64()?);
        let rows = self.count(rows, 1)?;
        let codes = self.i32()?;
        let codes = self.raw(usize::try_from(codes).map_err(|_| wrong("a negative number of codes"))?)?;
        let quantiser = self.quantiser()?;
        if columns != dim as i64 || quantiser.dim != dim || codes.len() != rows * quantiser.parts {
            return Err(wrong("a quantised matrix is not as wide as the model"));
        }
        let norms = match has_norms {
            true => {
                let codes = self.raw(rows)?;
                let quantiser = self.quantiser()?;
                if quantiser.dim != 1 || quantiser.parts != 1 {
                    return Err(wrong("norms are not single numbers"));
                }
                Some(codes.iter().map(|code| quantiser.centroids[*code as usize]).collect::<Vec<f32>>())
            }
            false => None,
        };
        let mut values = Vec::with_capacity(rows * dim);
        for (row, codes) in codes.chunks_exact(quantiser.parts).enumerate() {
            let norm = norms.as_ref().map_or(1.0, |norms| norms[row]);
            for (part, code) in codes.iter().enumerate() {
                values.extend(quantiser.centroid(part, *code).iter().map(|x| norm * x));
            }
        }
        Ok(values)
    }

    fn quantiser(&mut self) -> io::Result<Quantiser> {
        let (dim, parts, width, last) = (self.size()?, self.size()?, self.size()?, self.size()?);
        let sound = parts > 0 && width > 0 && last > 0 && last <= width && (parts - 1).checked_mul(width).map(|n| n + last) == Some(dim);
        if !sound {
            return Err(wrong("a quantiser's parts do not add up"));
        }
        Ok(Quantiser { dim, parts, width, last, centroids: self.floats(dim * CENTROIDS)? })
    }
}

struct Quantiser {
    dim: usize,
    parts: usize,
    width: usize,
    last: usize,
    centroids: Vec<f32>,
}

impl Quantiser {
    fn centroid(&self, part: usize, code: u8) -> &[f32] {
        let width = if part + 1 == self.parts { self.last } else { self.width };
        &self.centroids[part * CENTROIDS * self.width + code as usize * width..][..width]
    }
}

impl FastText {
    /// Reads a model of `len` bytes.
    pub fn read(inner: impl Read, len: u64) -> io::Result<FastText> {
        let mut r = Reader { inner, left: len };
        if r.i32()? != MAGIC {
            return Err(wrong("it is not a fastText model"));
        }
        let version = r.i32()?;
        if !VERSIONS.contains(&version) {
            return Err(wrong(&format!("its version is {version}, expected 11 or 12")));
        }
        let dim = r.size()?;
        let [_window, _epochs, _min_count, _negatives] = [r.i32()?, r.i32()?, r.i32()?, r.i32()?];
        let word_ngrams = r.size()?;
        let (loss, model) = (r.i32()?, r.i32()?);
        let (buckets, min_n, mut max_n) = (r.size()? as u64, r.size()?, r.size()?);
        let (_update_rate, _sampling) = (r.i32()?, r.bytes::<8>()?);
        if model != SUPERVISED || dim == 0 {
            return Err(wrong("it is not a supervised model: it has no labels"));
        }
        if version == 11 {
            max_n = 0; // supervised models had no subwords then
        }
        let entries = r.i32()?;
        let entries = r.count(i64::from(entries), 10)?;
        let (n_words, n_labels) = (r.size()?, r.size()?);
        let (_tokens, pruned) = (r.i64()?, r.i64()?);
        if n_words + n_labels != entries || n_labels == 0 {
            return Err(wrong("its numbers of words and labels do not add up"));
        }
        let (mut words, mut labels, mut counts) = (HashMap::with_capacity(n_words), Vec::new(), Vec::new());
        for i in 0..entries {
            let word = r.string()?;
            let count = r.i64()?;
            let _kind = r.flag()?;
            if i < n_words {
                words.insert(word.into_boxed_slice(), i as u32);
            } else {
                let label = String::from_utf8_lossy(&word);
                labels.push(label.strip_prefix(LABEL).unwrap_or(&label).into());
                counts.push(count);
            }
        }
        let kept = match pruned {
            ..0 => None,
            n => {
                let n = r.count(n, 8)?;
                Some((0..n).map(|_| Ok((r.i32()? as u32, r.i32()? as u32))).collect::<io::Result<HashMap<_, _>>>()?)
            }
        };
        let is_quantised = r.flag()?;
        let input = if is_quantised { r.quantised(dim)? } else { r.matrix(dim)? };
        let output_too = r.flag()?;
        let output = if is_quantised && output_too { r.quantised(dim)? } else { r.matrix(dim)? };
        let head = match loss {
            1 => Head::Tree(tree(&counts)?),
            3 => Head::Softmax,
            2 | 4 => Head::Sigmoid,
            other => return Err(wrong(&format!("its loss {other} is unknown"))),
        };
        let ngrams = if max_n == 0 && word_ngrams < 2 { 0 } else { kept.as_ref().map_or(buckets as usize, HashMap::len) };
        let far = kept.iter().flat_map(|kept| kept.values()).any(|row| *row as usize >= ngrams);
        if input.len() < (n_words + ngrams) * dim
            || output.len() < n_labels * dim
            || far
            || (buckets == 0 && (max_n > 0 || word_ngrams > 1))
        {
            return Err(wrong("its matrices are smaller than its dictionary"));
        }
        let (sums, sum_rows) = (Vec::new(), Vec::new());
        let mut model = FastText { dim, min_n, max_n, word_ngrams, buckets, words, labels, kept, input, output, head, sums, sum_rows };
        model.sum_words(n_words);
        Ok(model)
    }

    fn sum_words(&mut self, n: usize) {
        if n * self.dim > MOST_SUMS {
            return;
        }
        let (mut sums, mut rows) = (vec![0f32; n * self.dim], vec![0u32; n]);
        let mut padded = Vec::new();
        for (word, &id) in &self.words {
            let sum = &mut sums[id as usize * self.dim..][..self.dim];
            rows[id as usize] = self.add_word(word, Some(id), &mut padded, sum);
        }
        (self.sums, self.sum_rows) = (sums, rows);
    }

    /// The most probable label and its probability; `None` for a text without a known word or n-gram.
    /// White space of ASCII separates words; a newline counts as a space, and one ends the text, as fastText asks for.
    pub fn detect(&self, text: &str, scratch: &mut Scratch) -> Option<(&str, f32)> {
        let Scratch { hidden, hashes, padded } = scratch;
        hidden.clear();
        hidden.resize(self.dim, 0.0);
        hashes.clear();
        let mut rows = 0;
        for word in text.as_bytes().split(|c| is_space(*c)).filter(|word| !word.is_empty()).chain([END_OF_LINE]) {
            let id = self.words.get(word).copied();
            if id.is_none() && word.starts_with(LABEL.as_bytes()) {
                continue;
            }
            if self.word_ngrams > 1 {
                hashes.push(fnv(word));
            }
            rows += match id {
                Some(id) if !self.sum_rows.is_empty() => {
                    add(hidden, &self.sums[id as usize * self.dim..][..self.dim]);
                    self.sum_rows[id as usize]
                }
                id => self.add_word(word, id, padded, hidden),
            };
            // What follows a word that ends lines is another line.
            if word == END_OF_LINE {
                break;
            }
        }
        rows += self.add_word_ngrams(hashes, hidden);
        if rows == 0 {
            return None;
        }
        hidden.iter_mut().for_each(|h| *h *= 1.0 / rows as f32);
        let (label, log) = self.best(hidden)?;
        Some((&self.labels[label], log.exp()))
    }

    /// Adds a word's row and those of its n-grams, and gives their number.
    fn add_word(&self, word: &[u8], id: Option<u32>, padded: &mut Vec<u8>, out: &mut [f32]) -> u32 {
        let mut rows = 0;
        if let Some(id) = id {
            add(out, self.row(u64::from(id)));
            rows += 1;
        }
        if word == END_OF_LINE || self.max_n == 0 {
            return rows;
        }
        padded.clear();
        padded.push(b'<');
        padded.extend_from_slice(word);
        padded.push(b'>');
        for start in (0..padded.len()).filter(|i| !is_continuation(padded[*i])) {
            let (mut end, mut hash) = (start, FNV_START);
            for n in 1..=self.max_n {
                if end == padded.len() {
                    break;
                }
                hash = fnv_step(hash, padded[end]);
                end += 1;
                while end < padded.len() && is_continuation(padded[end]) {
                    hash = fnv_step(hash, padded[end]);
                    end += 1;
                }
                if n >= self.min_n && !(n == 1 && (start == 0 || end == padded.len())) {
                    rows += self.add_ngram(u64::from(hash) % self.buckets, out);
                }
            }
        }
        rows
    }

    fn add_word_ngrams(&self, hashes: &[u32], out: &mut [f32]) -> u32 {
        let mut rows = 0;
        for i in 0..hashes.len() {
            // The original keeps hashes as signed numbers.
            let wide = |hash: u32| hash as i32 as i64 as u64;
            let mut hash = wide(hashes[i]);
            for next in hashes.iter().skip(i + 1).take(self.word_ngrams - 1) {
                hash = hash.wrapping_mul(116_049_371).wrapping_add(wide(*next));
                rows += self.add_ngram(hash % self.buckets, out);
            }
        }
        rows
    }

    fn add_ngram(&self, bucket: u64, out: &mut [f32]) -> u32 {
        let kept = match &self.kept {
            Some(kept) => kept.get(&(bucket as u32)).map(|row| u64::from(*row)),
            None => Some(bucket),
        };
        let Some(at) = kept else { return 0 };
        add(out, self.row(self.words.len() as u64 + at));
        1
    }

    fn row(&self, i: u64) -> &[f32] {
        &self.input[i as usize * self.dim..][..self.dim]
    }

    fn product(&self, row: usize, hidden: &[f32]) -> f32 {
        self.output[row * self.dim..][..self.dim].iter().zip(hidden).map(|(w, h)| w * h).sum()
    }

    /// The best label and the logarithm of its probability, as fastText makes it.
    fn best(&self, hidden: &[f32]) -> Option<(usize, f32)> {
        let n = self.labels.len();
        let logs = |probability: &dyn Fn(usize) -> f32| {
            let logs = (0..n).map(|i| (i, log(probability(i))));
            logs.fold(
                None,
                |best: Option<(usize, f32)>, (i, log)| if best.is_some_and(|(_, most)| most >= log) { best } else { Some((i, log)) },
            )
        };
        match &self.head {
            Head::Tree(children) => {
                let mut best = None;
                self.descend(children, n + children.len() - 1, 0.0, hidden, &mut best);
                best
            }
            Head::Softmax => {
                let scores: Vec<f32> = (0..n).map(|i| self.product(i, hidden)).collect();
                let most = scores.iter().copied().fold(f32::NEG_INFINITY, f32::max);
                let sum: f32 = scores.iter().map(|score| (score - most).exp()).sum();
                logs(&|i| (scores[i] - most).exp() / sum)
            }
            Head::Sigmoid => logs(&|i| sigmoid(self.product(i, hidden))),
        }
    }

    fn descend(&self, children: &[[u32; 2]], node: usize, score: f32, hidden: &[f32], best: &mut Option<(usize, f32)>) {
        if score < log(0.0) || best.is_some_and(|(_, most)| score < most) {
            return;
        }
        let Some(inner) = node.checked_sub(self.labels.len()) else {
            if best.is_none_or(|(_, most)| score > most) {
                *best = Some((node, score));
            }
            return;
        };
        let right = sigmoid(self.product(inner, hidden));
        let [left_child, right_child] = children[inner];
        self.descend(children, left_child as usize, score + log(1.0 - right), hidden, best);
        self.descend(children, right_child as usize, score + log(right), hidden, best);
    }
}

/// The Huffman tree over labels whose counts descend.
fn tree(counts: &[i64]) -> io::Result<Vec<[u32; 2]>> {
    const UNKNOWN: i64 = 1_000_000_000_000_000;
    let n = counts.len();
    if counts.iter().any(|count| !(0..UNKNOWN).contains(count)) {
        return Err(wrong("its labels have impossible counts"));
    }
    let mut weights = counts.to_vec();
    weights.resize(2 * n - 1, UNKNOWN);
    let (mut leaf, mut node) = (n, n);
    let mut children = Vec::with_capacity(n - 1);
    for i in n..2 * n - 1 {
        let mut least = || {
            if leaf > 0 && weights[leaf - 1] < weights[node] {
                leaf -= 1;
                leaf
            } else {
                node += 1;
                node - 1
            }
        };
        let pair = [least(), least()];
        if pair.iter().any(|child| *child >= i) {
            return Err(wrong("its labels' counts make no tree"));
        }
        weights[i] = weights[pair[0]].saturating_add(weights[pair[1]]);
        children.push(pair.map(|child| child as u32));
    }
    Ok(children)
}

fn add(out: &mut [f32], row: &[f32]) {
    out.iter_mut().zip(row).for_each(|(out, x)| *out += x);
}

fn sigmoid(x: f32) -> f32 {
    1.0 / (1.0 + (-x).exp())
}

/// fastText's logarithm, which never meets zero.
fn log(x: f32) -> f32 {
    (f64::from(x) + 1e-5).ln() as f32
}

fn is_continuation(byte: u8) -> bool {
    byte & 0xc0 == 0x80
}

/// What separates words for fastText; a newline is more than that, but counts as a space here.
pub(crate) fn is_space(byte: u8) -> bool {
    matches!(byte, b' ' | b'\n' | b'\r' | b'\t' | 0x0b | 0x0c | 0)
}

const FNV_START: u32 = 2_166_136_261;

/// FNV-1a over signed bytes, as fastText has it.
fn fnv_step(hash: u32, byte: u8) -> u32 {
    (hash ^ byte as i8 as u32).wrapping_mul(16_777_619)
}

fn fnv(bytes: &[u8]) -> u32 {
    bytes.iter().fold(FNV_START, |hash, byte| fnv_step(hash, *byte))
}
