//! Writes metadata that looks like CommonPool's: parquet files of 10,000 rows with made-up uids, urls, captions, sizes
//! and scores, and, where asked, the `.npz` beside them.
//!
//! ```text
//! cargo run --release --example generate -- DIR ROWS [--embeddings]
//! ```
#![allow(clippy::print_stderr)]

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::Path;
use std::sync::Arc;

use arrow::array::{ArrayRef, Float32Array, Int64Array, ListBuilder, RecordBatch, StringArray, StringBuilder};
use arrow::array::{FixedSizeListBuilder, Float32Builder};
use half::f16;
use parquet::arrow::ArrowWriter;
use parquet::basic::Compression;
use parquet::file::properties::WriterProperties;
use zip::write::SimpleFileOptions;
use zip::{CompressionMethod, ZipWriter};

const FILE_ROWS: u64 = 10_000;

/// The arrays of an `.npz`, as CommonPool has them.
const ARRAYS: [(&str, usize); 4] = [("b32_img", 512), ("b32_txt", 512), ("l14_img", 768), ("l14_txt", 768)];

const WORDS: &str = "the of and a in to for on with new photo image stock vector white black red blue woman man home design \
    free art wall print set hand drawn background illustration portrait summer winter beach house kitchen living room modern \
    vintage wedding dress shoes leather bag case cover phone car engine parts map city night sky mountain lake tree flower \
    garden dog cat horse bird fish recipe cake chocolate food restaurant menu hotel travel guide best top price sale buy \
    online shop size inch pack men women kids baby girl boy school book page cover poster movie music band concert live \
    2015 2016 2017 2018 2019 3d hd wallpaper desktop logo icon template business card";

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let (Some(dir), Some(rows)) = (args.first(), args.get(1).and_then(|rows| rows.parse::<u64>().ok())) else {
        return Err("usage: generate DIR ROWS [--embeddings]".into());
    };
    let embeddings = args.iter().any(|arg| arg == "--embeddings");
    std::fs::create_dir_all(dir)?;
    let files = rows.div_ceil(FILE_ROWS);
    let next = std::sync::atomic::AtomicU64::new(0);
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                loop {
                    let file = next.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
                    if file >= files {
                        break;
                    }
                    let n = FILE_ROWS.min(rows - file * FILE_ROWS);
                    let stem = Path::new(dir).join(format!("{file:08}"));
                    write_metadata(&stem.with_extension("parquet"), file, n).expect("a writable folder");
                    if embeddings {
                        write_embeddings(&stem.with_extension("npz"), file, n as usize).expect("a writable folder");
                    }
                }
            });
        }
    });
    eprintln!("{rows} rows in {files} files: {dir}");
    Ok(())
}

/// A stream of draws: splitmix64.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn unit(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1u64 << 53) as f64
    }

    /// Roughly normal.
    fn normal(&mut self) -> f64 {
        (0..6).map(|_| self.unit()).sum::<f64>() * 2f64.sqrt() - 3.0 * 2f64.sqrt()
    }
}

fn write_metadata(path: &Path, file: u64, n: u64) -> Result<(), Box<dyn std::error::Error>> {
    let words: Vec<&str> = WORDS.split_whitespace().collect();
    let mut random = Random(file.wrapping_mul(0x0123_4567_89ab_cdef) ^ 0x7461_726e);
    let (mut uids, mut urls, mut texts, mut digests) =
        (StringBuilder::new(), StringBuilder::new(), StringBuilder::new(), StringBuilder::new());
    let (mut widths, mut heights, mut b32, mut l14) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    let mut boxes = ListBuilder::new(FixedSizeListBuilder::new(Float32Builder::new(), 4));
    let mut text = String::new();
    for _ in 0..n {
        uids.append_value(format!("{:016x}{:016x}", random.next(), random.next()));
        urls.append_value(format!(
            "https://{}{}.example.com/{}/{:x}/{}-{}-{:x}.jpg",
            words[(random.next() % words.len() as u64) as usize],
            random.next() % 50_000,
            2005 + random.next() % 18,
            random.next() >> 40,
            words[(random.next() % words.len() as u64) as usize],
            words[(random.next() % words.len() as u64) as usize],
            random.next() >> 24
        ));
        text.clear();
        // Short titles mostly, a long tail, some with a serial number.
        let count = 2 + (-(random.unit().max(1e-9)).ln() * 9.0) as usize;
        for _ in 0..count.min(120) {
            // Frequent words first, as languages have it.
            let rank = (random.unit() * random.unit() * words.len() as f64) as usize;
            text.push_str(words[rank]);
            text.push(' ');
        }
        if random.next().is_multiple_of(4) {
            text.push_str(&format!("#{}", random.next() % 1_000_000));
        }
        texts.append_value(text.trim_end());
        let width = (40.0 + 700.0 * (0.7 * random.normal()).exp()) as i64;
        widths.push(width);
        heights.push((width as f64 * (0.35 * random.normal()).exp()).max(1.0) as i64);
        let match_of = random.normal();
        b32.push((0.245 + 0.05 * (0.8 * match_of + 0.6 * random.normal())) as f32);
        l14.push((0.215 + 0.06 * match_of) as f32);
        if random.next().is_multiple_of(5) {
            let (left, top) = (random.unit() as f32 * 0.7, random.unit() as f32 * 0.7);
            boxes.values().values().append_slice(&[left, top, left + 0.2, top + 0.25]);
            boxes.values().append(true);
        }
        boxes.append(true);
        digests.append_value(format!("{:016x}{:016x}{:016x}{:016x}", random.next(), random.next(), random.next(), random.next()));
    }
    let columns: [(&str, ArrayRef); 9] = [
        ("uid", Arc::new(uids.finish())),
        ("url", Arc::new(urls.finish())),
        ("text", Arc::new(texts.finish()) as Arc<StringArray>),
        ("original_width", Arc::new(Int64Array::from(widths))),
        ("original_height", Arc::new(Int64Array::from(heights))),
        ("clip_b32_similarity_score", Arc::new(Float32Array::from(b32))),
        ("clip_l14_similarity_score", Arc::new(Float32Array::from(l14))),
        ("face_bboxes", Arc::new(boxes.finish())),
        ("sha256", Arc::new(digests.finish())),
    ];
    let batch = RecordBatch::try_from_iter_with_nullable(columns.map(|(name, column)| (name, column, true)))?;
    let properties = WriterProperties::builder().set_compression(Compression::SNAPPY).build();
    let mut writer = ArrowWriter::try_new(File::create(path)?, batch.schema(), Some(properties))?;
    writer.write(&batch)?;
    writer.close()?;
    Ok(())
}

/// Stored arrays of unit vectors, as numpy's `savez` writes them.
fn write_embeddings(path: &Path, file: u64, n: usize) -> Result<(), Box<dyn std::error::Error>> {
    let mut zip = ZipWriter::new(BufWriter::with_capacity(1 << 20, File::create(path)?));
    let options = SimpleFileOptions::default().compression_method(CompressionMethod::Stored);
    for (array, (name, dim)) in ARRAYS.into_iter().enumerate() {
        zip.start_file(format!("{name}.npy"), options)?;
        let mut header = format!("{{'descr': '<f2', 'fortran_order': False, 'shape': ({n}, {dim}), }}");
        while !(header.len() + 11).is_multiple_of(64) {
            header.push(' ');
        }
        header.push('\n');
        zip.write_all(b"\x93NUMPY\x01\x00")?;
        zip.write_all(&(header.len() as u16).to_le_bytes())?;
        zip.write_all(header.as_bytes())?;
        // Signs only: lengths of 1 within float16's rounding, drawn fast.
        let [plus, minus] = [1.0, -1.0].map(|sign| f16::from_f64(sign / (dim as f64).sqrt()).to_le_bytes());
        let mut random = Random(file * 4 + array as u64);
        let mut row = Vec::with_capacity(dim * 2);
        for _ in 0..n {
            row.clear();
            for k in (0..dim).step_by(64) {
                let bits = random.next();
                (k..dim.min(k + 64)).for_each(|k| row.extend(if bits >> (k % 64) & 1 == 1 { plus } else { minus }));
            }
            zip.write_all(&row)?;
        }
    }
    zip.finish()?;
    Ok(())
}
