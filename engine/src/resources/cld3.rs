//! Compact Language Detector v3: a feed-forward network over character n-grams and scripts.
//! Gives what gcld3's `NNetLanguageIdentifier(0, 1000).FindLanguage` gives; `data/NOTICE` tells where the parameters
//! are from.

use std::sync::LazyLock;

static DATA: &[u8] = include_bytes!("../../data/cld3.bin");

/// The detector, unpacked once.
pub(crate) static CLD3: LazyLock<Cld3> = LazyLock::new(|| Cld3::read(DATA));

/// Bytes of a text that are looked at.
const MAX_INPUT: usize = 10_000;
/// Longer cleaned texts are judged by snippets.
const MAX_BYTES: usize = 1000;
const SNIPPETS: usize = 5;

/// Scripts with a meaning of their own; `HANI` includes kana and hangul.
const COMMON: u8 = 0;
const HANI: u8 = 24;
const INHERITED: u8 = 40;
/// The feature that stands for Hani where most of it is hangul.
const HANGUL: usize = 102;

const INPUTS: usize = 80;
const HIDDEN: usize = 208;
const LANGUAGES: usize = 109;

pub(crate) struct Cld3 {
    blocks: Vec<Block>,
    hidden: Vec<f32>,
    hidden_bias: Vec<f32>,
    output: Vec<f32>,
    output_bias: Vec<f32>,
    languages: Vec<&'static str>,
    /// By code point below 65536.
    scripts: Vec<u8>,
    lower: Vec<u16>,
    /// Ranges and pairs above.
    high_scripts: Vec<(u32, u32, u8)>,
    high_lower: Vec<(u32, u32)>,
}

/// Embeddings of one kind of feature.
struct Block {
    columns: usize,
    place: usize,
    /// `[rows, columns]`
    weights: Vec<f32>,
}

impl Block {
    fn rows(&self) -> usize {
        self.weights.len() / self.columns
    }
}

/// Room that is used again from text to text.
#[derive(Default)]
pub(crate) struct Scratch {
    cleaned: Vec<u8>,
    selected: Vec<u8>,
    /// Start and end of each element that n-grams are made of.
    elements: Vec<(u32, u32)>,
    padded: Vec<u8>,
    counts: Vec<u32>,
    touched: Vec<u32>,
}

struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Reader<'a> {
    fn take(&mut self, n: usize) -> &'a [u8] {
        self.at += n;
        &self.bytes[self.at - n..self.at]
    }

    fn align(&mut self) {
        self.at = self.at.next_multiple_of(4);
    }

    fn u32(&mut self) -> u32 {
        u32::from_le_bytes(self.take(4).try_into().expect("four bytes"))
    }

    fn matrix(&mut self) -> Vec<f32> {
        let n = self.u32() as usize * self.u32() as usize;
        self.take(n * 4).as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect()
    }

    fn block(&mut self) -> Block {
        let (rows, columns, place) = (self.u32() as usize, self.u32() as usize, self.u32() as usize);
        let scale = |b: &[u8; 2]| f32::from_bits(u32::from(u16::from_le_bytes(*b)) << 16);
        let scales: Vec<f32> = self.take(rows * 2).as_chunks::<2>().0.iter().map(scale).collect();
        self.align();
        let quantised = self.take(rows * columns);
        self.align();
        let weights = quantised.chunks_exact(columns).zip(&scales);
        let weights = weights.flat_map(|(row, scale)| row.iter().map(move |q| (f32::from(*q) - 128.0) * scale)).collect();
        Block { columns, place, weights }
    }
}

impl Cld3 {
    fn read(bytes: &'static [u8]) -> Cld3 {
        let mut r = Reader { bytes, at: 8 };
        let blocks = (0..r.u32()).map(|_| r.block()).collect();
        let (hidden, hidden_bias, output, output_bias) = (r.matrix(), r.matrix(), r.matrix(), r.matrix());
        let languages = (0..r.u32()).map(|_| {
            let n = r.take(1)[0] as usize;
            std::str::from_utf8(r.take(n)).expect("names are ASCII")
        });
        let languages = languages.collect();
        r.align();
        let (mut scripts, mut high_scripts) = (vec![COMMON; 1 << 16], Vec::new());
        for _ in 0..r.u32() {
            let (first, last, script) = (r.u32(), r.u32(), r.u32() as u8);
            (first..=last.min(0xffff)).for_each(|c| scripts[c as usize] = script);
            if last > 0xffff {
                high_scripts.push((first, last, script));
            }
        }
        let (mut lower, mut high_lower) = ((0..=u16::MAX).collect::<Vec<_>>(), Vec::new());
        for _ in 0..r.u32() {
            let (from, to) = (r.u32(), r.u32());
            match (u16::try_from(from), u16::try_from(to)) {
                (Ok(from), Ok(to)) => lower[from as usize] = to,
                _ => high_lower.push((from, to)),
            }
        }
        Cld3 { blocks, hidden, hidden_bias, output, output_bias, languages, scripts, lower, high_scripts, high_lower }
    }

    fn script(&self, c: char) -> u8 {
        let c = c as u32;
        if c <= 0xffff {
            return self.scripts[c as usize];
        }
        self.high_scripts.iter().find(|(first, last, _)| (*first..=*last).contains(&c)).map_or(COMMON, |(_, _, script)| *script)
    }

    fn lower(&self, c: char) -> char {
        let lower = match self.lower.get(c as usize) {
            Some(lower) => u32::from(*lower),
            None => self.high_lower.iter().find(|(from, _)| *from == c as u32).map_or(c as u32, |(_, to)| *to),
        };
        char::from_u32(lower).unwrap_or(c)
    }

    /// The language's code and its probability. A newline counts as a space. Texts without a letter get what the network
    /// says of nothing, as from gcld3.
    pub fn detect(&self, text: &str, scratch: &mut Scratch) -> (&'static str, f32) {
        let Scratch { cleaned, selected, elements, padded, counts, touched } = scratch;
        self.clean(text, cleaned);
        squeeze(cleaned);
        select(cleaned, selected);
        // Every cut is made between characters.
        let text = std::str::from_utf8(selected).unwrap_or_default();
        split(text, padded, elements);
        let mut inputs = [0f32; INPUTS];
        for (block, n) in [(0, 2), (1, 4), (4, 3), (5, 1)] {
            self.blocks[block].add_ngrams(n, padded, elements, counts, touched, &mut inputs);
        }
        self.blocks[2].add_classes(text, &mut inputs);
        self.blocks[3].add(self.script_feature(text), 1.0, &mut inputs);
        self.classify(&inputs)
    }

    fn classify(&self, inputs: &[f32; INPUTS]) -> (&'static str, f32) {
        let mut hidden: [f32; HIDDEN] = self.hidden_bias[..].try_into().expect("208 biases");
        for (x, row) in inputs.iter().zip(self.hidden.as_chunks::<HIDDEN>().0) {
            for (h, w) in hidden.iter_mut().zip(row) {
                *h += x * w;
            }
        }
        let mut scores: [f32; LANGUAGES] = self.output_bias[..].try_into().expect("109 biases");
        for (h, row) in hidden.iter().zip(self.output.as_chunks::<LANGUAGES>().0) {
            if *h > 0.0 {
                for (score, w) in scores.iter_mut().zip(row) {
                    *score += h * w;
                }
            }
        }
        let mut best = 0;
        for (i, score) in scores.iter().enumerate() {
            if *score > scores[best] {
                best = i;
            }
        }
        let sum: f32 = scores.iter().map(|score| (score - scores[best]).exp()).sum();
        (self.languages[best], 1.0 / sum)
    }

    /// Runs of letters in lower case with a space between, script by script.
    fn clean(&self, text: &str, out: &mut Vec<u8>) {
        out.clear();
        let end = valid_prefix(text, MAX_INPUT);
        let at = |pos: usize| text[pos..].chars().next();
        let script_at = |pos: usize| at(pos).map_or(COMMON, |c| self.script(c));
        let skip = |mut pos: usize| {
            while pos < end {
                let c = at(pos).expect("before the end");
                if self.script(c) != COMMON {
                    break;
                }
                pos += c.len_utf8();
            }
            pos
        };
        let mut pos = skip(0);
        while pos < end {
            let script = script_at(pos);
            out.push(b' ');
            loop {
                while pos < end {
                    let c = at(pos).expect("before the end");
                    let other = self.script(c);
                    if other != script && other != INHERITED {
                        if other == COMMON {
                            break;
                        }
                        // A letter of another script stays where the next is none, or of this one.
                        let next = script_at(pos + c.len_utf8());
                        if next != COMMON && next != script {
                            break;
                        }
                    }
                    out.extend_from_slice(self.lower(c).encode_utf8(&mut [0; 4]).as_bytes());
                    pos += c.len_utf8();
                }
                pos = skip(pos);
                out.push(b' ');
                let next = script_at(pos);
                if pos >= end || (next != script && next != INHERITED) {
                    break;
                }
            }
        }
    }

    /// The script of the first run of letters, hangul told from other Hani.
    fn script_feature(&self, text: &str) -> usize {
        let Some(start) = text.find(|c| self.script(c) != COMMON) else { return COMMON as usize };
        let rest = &text[start..];
        let script = self.script(rest.chars().next().unwrap_or(' '));
        if script != HANI {
            return script as usize;
        }
        let (mut hangul, mut others) = (0, 0);
        let mut chars = rest.chars().peekable();
        let mut in_word = true;
        while let Some(c) = chars.next() {
            let of = self.script(c);
            if of == COMMON {
                in_word = false;
                continue;
            }
            if of != script && of != INHERITED {
                let next = chars.peek().map_or(COMMON, |c| self.script(*c));
                if !in_word || (next != COMMON && next != script) {
                    break;
                }
            }
            in_word = true;
            match c as u32 {
                0x1100..=0x11ff | 0xa960..=0xa97f | 0xd7b0..=0xd7ff | 0x3130..=0x318f | 0xffa0..=0xffdc | 0xac00..=0xd7af => hangul += 1,
                _ => others += 1,
            }
        }
        if hangul > others { HANGUL } else { HANI as usize }
    }
}

impl Block {
    #[inline(always)]
    fn add(&self, row: usize, weight: f32, inputs: &mut [f32; INPUTS]) {
        let weights = &self.weights[row * self.columns..][..self.columns];
        for (input, w) in inputs[self.place..].iter_mut().zip(weights) {
            *input += w * weight;
        }
    }

    /// Each n-gram without a space, weighted by its share.
    fn add_ngrams(
        &self,
        n: usize,
        bytes: &[u8],
        elements: &[(u32, u32)],
        counts: &mut Vec<u32>,
        touched: &mut Vec<u32>,
        inputs: &mut [f32; INPUTS],
    ) {
        counts.resize(counts.len().max(self.rows()), 0);
        let mut total = 0u32;
        let mut since_space = 0;
        for (i, &(start, end)) in elements.iter().enumerate() {
            since_space = if bytes[start as usize] == b' ' { 0 } else { since_space + 1 };
            if since_space < n {
                continue;
            }
            let first = elements[i + 1 - n].0;
            let row = hash32(&bytes[first as usize..end as usize]) % self.rows() as u32;
            total += 1;
            if counts[row as usize] == 0 {
                touched.push(row);
            }
            counts[row as usize] += 1;
        }
        for row in touched.drain(..) {
            let count = std::mem::take(&mut counts[row as usize]);
            self.add(row as usize, count as f32 / total as f32, inputs);
        }
    }

    /// Classes of characters, each by its share.
    fn add_classes(&self, text: &str, inputs: &mut [f32; INPUTS]) {
        let mut counts = [0u32; 12];
        for c in text.chars() {
            let class = match c as u32 {
                c if c < 0x80 && !(c as u8).is_ascii_alphabetic() => continue,
                ..0x80 => 1,
                0x370..=0x3ff => 5,
                0x400..=0x4ff => 6,
                0x590..=0x5ff => 7,
                0x600..=0x6ff => 8,
                0x80..0x800 => 2,
                0x1100..=0x11ff => 9,
                0x3041..=0x309f => 10,
                0x30a0..=0x30ff => 11,
                0x800..=0xffff => 3,
                _ => 4,
            };
            counts[class] += 1;
        }
        let total: u32 = counts.iter().sum();
        for (class, count) in counts.into_iter().enumerate().filter(|(_, count)| *count > 0) {
            self.add(class, count as f32 / total as f32, inputs);
        }
    }
}

/// Bytes up to the first character that may not be interchanged, at most `limit`, whole characters.
fn valid_prefix(text: &str, limit: usize) -> usize {
    let mut end = 0;
    for c in text.chars() {
        let bad = match c as u32 {
            0..=8 | 0xb | 0xe..=0x1f | 0x7f..=0x9f | 0xfdd0..=0xfdef => true,
            c => c & 0xfffe == 0xfffe,
        };
        if bad || end + c.len_utf8() > limit {
            break;
        }
        end += c.len_utf8();
    }
    end
}

const CHUNK: usize = 48;
/// A chunk is dropped from so many spaces, or bytes that could be foretold, up.
const MANY_SPACES: usize = 14;
const MANY_FORETOLD: usize = 19;
const BACK: usize = 32;

/// Drops repetitive stretches, in place; leaves one byte fewer than it is given a reason to, never half a character.
/// What lies behind the kept bytes is read as it was before: the original does.
fn squeeze(b: &mut Vec<u8>) {
    let n = b.len();
    b.push(0); // the original's strings end so
    let mut table = [0u32; 4096];
    let (mut hash, mut src, mut dst, mut skipping) = (0usize, 0, 0, false);
    while src < n {
        let mut len = CHUNK.min(n - src);
        while is_continuation(b[src + len]) {
            len += 1;
        }
        let spaces = b[src..src + (len & !3)].iter().filter(|c| **c == b' ').count();
        let foretold = count_foretold(&b[src..src + len], &mut table, &mut hash);
        if spaces >= MANY_SPACES || foretold >= MANY_FORETOLD {
            if !skipping {
                dst -= back_to_space(b, dst);
                if dst == 0 {
                    b[0] = b' ';
                    dst = 1;
                }
                skipping = true;
            }
        } else {
            if std::mem::take(&mut skipping) {
                let k = forward_to_space(&b[src..src + len.min(BACK)]);
                src += k;
                len -= k;
            }
            b.copy_within(src..src + len, dst);
            dst += len;
        }
        src += len;
    }
    b.truncate(dst);
}

fn is_continuation(byte: u8) -> bool {
    byte & 0xc0 == 0x80
}

fn back_to_space(b: &[u8], at: usize) -> usize {
    let limit = at.min(BACK);
    let space = (0..limit).find(|k| b[at - k - 1] == b' ');
    space.or_else(|| (0..limit).find(|k| !is_continuation(b[at - k]))).unwrap_or(0)
}

fn forward_to_space(b: &[u8]) -> usize {
    b.iter().position(|c| *c == b' ').map_or(0, |k| k + 1)
}

fn count_foretold(chunk: &[u8], table: &mut [u32; 4096], hash: &mut usize) -> usize {
    let (mut at, mut count) = (0, 0);
    while at < chunk.len() {
        let len = match chunk[at] {
            ..0xc0 => 1,
            0xc0..0xe0 => 2,
            0xe0..0xf0 => 3,
            _ => 4,
        };
        let c = chunk[at..chunk.len().min(at + len)].iter().fold(0u32, |c, byte| (c << 8) | u32::from(*byte));
        if table[*hash] == c {
            count += len;
        }
        table[*hash] = c;
        *hash = ((*hash << 4) ^ c as usize) & 0xfff;
        at += len;
    }
    count
}

/// Snippets spread over a long text; a short one as it is.
fn select(text: &[u8], out: &mut Vec<u8>) {
    out.clear();
    if text.len() <= MAX_BYTES {
        out.extend_from_slice(text);
        return;
    }
    let whole = |at: usize, n: usize| {
        let mut end = text.len().min(at + n);
        while end < text.len() && end > at && is_continuation(text[end]) {
            end -= 1;
        }
        end
    };
    let skip = (text.len() - MAX_BYTES) / (SNIPPETS + 1);
    let mut at = 0;
    for _ in 0..SNIPPETS {
        let start = whole(at, skip);
        at = whole(start, MAX_BYTES / SNIPPETS);
        out.extend_from_slice(&text[start..at]);
        out.push(b' ');
    }
}

/// The text with `^` before and `$` after each word, and where its characters lie.
fn split(text: &str, bytes: &mut Vec<u8>, elements: &mut Vec<(u32, u32)>) {
    bytes.clear();
    elements.clear();
    let mut push = |c: &[u8]| {
        let start = bytes.len() as u32;
        bytes.extend_from_slice(c);
        elements.push((start, bytes.len() as u32));
    };
    push(b"^");
    for c in text.chars() {
        if c == ' ' {
            push(b"$");
            push(b" ");
            push(b"^");
        } else {
            push(c.encode_utf8(&mut [0; 4]).as_bytes());
        }
    }
    push(b"$");
}

/// MurmurHash2 with CLD3's seed.
#[inline(always)]
fn hash32(bytes: &[u8]) -> u32 {
    const M: u32 = 0x5bd1_e995;
    let mut h = 0xbeef ^ bytes.len() as u32;
    let (words, rest) = bytes.as_chunks::<4>();
    for word in words {
        let mut k = u32::from_le_bytes(*word).wrapping_mul(M);
        k ^= k >> 24;
        h = h.wrapping_mul(M) ^ k.wrapping_mul(M);
    }
    if !rest.is_empty() {
        for (i, byte) in rest.iter().enumerate() {
            h ^= u32::from(*byte) << (8 * i);
        }
        h = h.wrapping_mul(M);
    }
    h ^= h >> 13;
    h = h.wrapping_mul(M);
    h ^ (h >> 15)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn awkward_texts_do_not_panic_and_are_stable() {
        let mut scratch = Scratch::default();
        let texts = ["", " ", "123 !?", "\u{0}", "a\u{7f}b", "é", "字", "한국어 문장", "\u{301}a", "ªº", "𐐀𐐨", "İ"];
        let long: Vec<String> = texts.iter().map(|text| text.repeat(3000)).collect();
        for text in texts.iter().copied().chain(long.iter().map(String::as_str)) {
            let (language, probability) = CLD3.detect(text, &mut scratch);
            assert!(probability > 0.0 && probability <= 1.0, "{language} {probability}");
            assert_eq!(CLD3.detect(text, &mut Scratch::default()), (language, probability));
        }
        // gcld3's answer to texts without a letter.
        let (language, probability) = CLD3.detect("", &mut scratch);
        assert_eq!(language, "ja");
        assert!((probability - 0.783_757_1).abs() < 1e-4);
    }
}
