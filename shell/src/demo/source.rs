use std::fmt;
use std::fs::File;
use std::io::{BufWriter, Cursor};
use std::path::Path;
use std::sync::Arc;

use arrow::array::{ArrayRef, FixedSizeListBuilder, Float64Builder, Int64Array, ListBuilder, RecordBatch, StringArray};
use image::RgbImage;
use image::codecs::jpeg::JpegEncoder;
use parquet::arrow::ArrowWriter;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use rayon::prelude::*;
use sha2::{Digest, Sha256};
use storage::Uid;

use super::picture::{COLOURS, COUNTS, SHAPES, Scene, TEXTURES};
use super::{caption, make_dir};
use crate::{Error, Result};

/// Shares of the pool, drawn independently: the rest has a true English caption.
const WRONG: f64 = 0.55;
const FOREIGN: f64 = 0.08;
const JUNK: f64 = 0.07;
const TINY: f64 = 0.05;
const NEAR_DUPLICATE: f64 = 0.08;
const NO_IMAGE: f64 = 0.06;

const PER_SHARD: usize = 1000;
const EVAL_IMAGES: usize = 240;

/// How many samples have which fault.
#[derive(Debug, Default)]
pub(super) struct Made {
    samples: usize,
    wrong: usize,
    foreign: usize,
    junk: usize,
    tiny: usize,
    near_duplicates: usize,
    no_image: usize,
}

impl fmt::Display for Made {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Made { samples, wrong, foreign, junk, tiny, near_duplicates, no_image } = self;
        write!(
            f,
            "{samples} samples: {wrong} with another picture's caption, {foreign} captioned in other languages, {junk} with junk for a caption,\n\
             {tiny} tiny pictures, {near_duplicates} near-duplicates of another sample, {no_image} whose image is lost"
        )
    }
}

struct Sample {
    uid: Uid,
    url: String,
    text: String,
    width: u32,
    height: u32,
    jpeg: Vec<u8>,
    fault: Fault,
    tiny: bool,
    near_duplicate: bool,
    has_image: bool,
}

#[derive(Clone, Copy, PartialEq)]
enum Fault {
    None,
    Wrong,
    Foreign,
    Junk,
}

/// Writes `DIR/source/{metadata,shards}` and `DIR/evalsets`, the same bytes for the same seed.
pub(super) fn write(dir: &Path, samples: usize, seed: u64) -> Result<Made> {
    let samples: Vec<Sample> = (0..samples).into_par_iter().map(|i| sample(i, seed)).collect();
    let (metadata, shards) = (dir.join("source/metadata"), dir.join("source/shards"));
    make_dir(&metadata)?;
    make_dir(&shards)?;
    for (i, part) in samples.chunks(PER_SHARD).enumerate() {
        write_metadata(&metadata.join(format!("{i:08}.parquet")), part)?;
        write_shard(&shards.join(format!("{i:08}.tar")), part, i * PER_SHARD)?;
    }
    write_evalsets(&dir.join("evalsets"), seed)?;
    let count = |f: fn(&Sample) -> bool| samples.iter().filter(|s| f(s)).count();
    Ok(Made {
        samples: samples.len(),
        wrong: count(|s| s.fault == Fault::Wrong),
        foreign: count(|s| s.fault == Fault::Foreign),
        junk: count(|s| s.fault == Fault::Junk),
        tiny: count(|s| s.tiny),
        near_duplicates: count(|s| s.near_duplicate),
        no_image: count(|s| !s.has_image),
    })
}

fn rng(seed: u64, stream: u64) -> ChaCha8Rng {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    rng.set_stream(stream);
    rng
}

fn sample(i: usize, seed: u64) -> Sample {
    let mut rng = rng(seed, 1 + i as u64);
    let near_duplicate = i > 0 && rng.random_bool(NEAR_DUPLICATE);
    // A near-duplicate shows the scene of an earlier sample, drawn with other noise.
    let of = if near_duplicate { rng.random_range(0..i) } else { i };
    let mut scene_rng = self::rng(seed, (1 << 40) + of as u64);
    let scene = Scene::random(&mut scene_rng);
    let fault = match rng.random::<f64>() {
        x if x < WRONG => Fault::Wrong,
        x if x < WRONG + FOREIGN => Fault::Foreign,
        x if x < WRONG + FOREIGN + JUNK => Fault::Junk,
        _ => Fault::None,
    };
    let text = match fault {
        Fault::None => caption::english(&scene, &mut rng),
        Fault::Wrong => caption::english(&Scene::random(&mut rng), &mut rng),
        Fault::Foreign => caption::foreign(&scene, &mut rng),
        Fault::Junk => caption::junk(&mut rng),
    };
    let tiny = rng.random_bool(TINY);
    let side = |rng: &mut ChaCha8Rng| if tiny { rng.random_range(16..32) } else { rng.random_range(80..=112) };
    let (width, height) = (side(&mut rng), side(&mut rng));
    let jpeg = encode(&scene.draw(width, height, &mut rng));
    let url = format!("https://example.org/pictures/{i}.jpg");
    let has_image = !rng.random_bool(NO_IMAGE);
    Sample { uid: Uid::of_pair(&url, &text), url, text, width, height, jpeg, fault, tiny, near_duplicate, has_image }
}

fn encode(image: &RgbImage) -> Vec<u8> {
    let mut jpeg = Cursor::new(Vec::new());
    JpegEncoder::new_with_quality(&mut jpeg, 90).encode_image(image).expect("memory takes any JPEG");
    jpeg.into_inner()
}

fn sha256(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

fn write_metadata(path: &Path, samples: &[Sample]) -> Result<()> {
    let text = |f: fn(&Sample) -> String| -> ArrayRef { Arc::new(StringArray::from_iter_values(samples.iter().map(f))) };
    let int = |f: fn(&Sample) -> u32| -> ArrayRef { Arc::new(Int64Array::from_iter_values(samples.iter().map(|s| i64::from(f(s))))) };
    let mut faces = ListBuilder::new(FixedSizeListBuilder::new(Float64Builder::new(), 4));
    samples.iter().for_each(|_| faces.append(true));
    let batch = RecordBatch::try_from_iter([
        ("uid", text(|s| s.uid.to_string())),
        ("url", text(|s| s.url.clone())),
        ("text", text(|s| s.text.clone())),
        ("original_width", int(|s| s.width)),
        ("original_height", int(|s| s.height)),
        ("face_bboxes", Arc::new(faces.finish()) as ArrayRef),
        ("sha256", text(|s| sha256(&s.jpeg))),
    ])?;
    let file = File::create(path).map_err(Error::io(path))?;
    let mut writer = ArrowWriter::try_new(file, batch.schema(), None)?;
    writer.write(&batch)?;
    writer.close()?;
    Ok(())
}

fn write_shard(path: &Path, samples: &[Sample], first_key: usize) -> Result<()> {
    let file = BufWriter::new(File::create(path).map_err(Error::io(path))?);
    let mut shard = tar::Builder::new(file);
    for (i, sample) in samples.iter().enumerate().filter(|(_, s)| s.has_image) {
        let key = format!("{:09}", first_key + i);
        let info = serde_json::json!({
            "uid": sample.uid.to_string(), "key": key, "caption": sample.text, "url": sample.url, "status": "success",
            "width": sample.width, "height": sample.height, "original_width": sample.width, "original_height": sample.height,
            "sha256": sha256(&sample.jpeg), "face_bboxes": [],
        });
        append(&mut shard, path, &format!("{key}.jpg"), &sample.jpeg)?;
        append(&mut shard, path, &format!("{key}.txt"), sample.text.as_bytes())?;
        append(&mut shard, path, &format!("{key}.json"), info.to_string().as_bytes())?;
    }
    shard.finish().map_err(Error::io(path))
}

fn append(archive: &mut tar::Builder<BufWriter<File>>, path: &Path, name: &str, bytes: &[u8]) -> Result<()> {
    let mut header = tar::Header::new_gnu();
    header.set_size(bytes.len() as u64);
    header.set_mode(0o644);
    archive.append_data(&mut header, name, bytes).map_err(Error::io(path))
}

/// Four classification sets of pictures that are not in the pool.
fn write_evalsets(dir: &Path, seed: u64) -> Result<()> {
    let colours = COLOURS.map(|(name, _)| name);
    // Prompts of captions' form, for every shape, colour, or both.
    let prompts = |form: &str, colours: &[&str], shapes: &[String]| -> Vec<String> {
        let of_colour =
            |colour: &&str| shapes.iter().map(|shape| form.replace("COLOUR", colour).replace("SHAPE", shape)).collect::<Vec<_>>();
        colours.iter().flat_map(of_colour).collect()
    };
    let shapes = SHAPES.map(str::to_string);
    let plurals = SHAPES.map(caption::plural);
    type Set = fn(&mut Scene, usize);
    let sets: [(&str, &[&str], Vec<String>, Set); 4] = [
        ("colours", &colours, prompts("a photo of a {c} SHAPE", &[""], &shapes), |scene, class| scene.colour = class),
        ("shapes", &SHAPES, prompts("a photo of a COLOUR {c}", &colours, &[String::new()]), |scene, class| {
            (scene.shape, scene.count) = (class, 0);
        }),
        ("textures", &TEXTURES, prompts("a COLOUR {c} SHAPE", &colours, &shapes), |scene, class| scene.texture = class),
        ("counts", &COUNTS, prompts("{c} COLOUR SHAPE", &colours, &plurals), |scene, class| scene.count = class),
    ];
    for (task, (name, classes, templates, set_class)) in sets.into_iter().enumerate() {
        let folder = dir.join(format!("wds_{name}_test"));
        make_dir(&folder.join("test"))?;
        let text = |file: &str, text: String| {
            let path = folder.join(file);
            std::fs::write(&path, text).map_err(Error::io(&path))
        };
        text("classnames.txt", classes.join("\n") + "\n")?;
        text("zeroshot_classification_templates.txt", templates.join("\n") + "\n")?;
        text("test/nshards.txt", "1\n".to_string())?;
        let path = folder.join("test/0.tar");
        let pictures: Vec<(usize, Vec<u8>)> = (0..EVAL_IMAGES)
            .into_par_iter()
            .map(|i| {
                let mut rng = rng(seed, (1 << 50) + (task * EVAL_IMAGES + i) as u64);
                let mut scene = Scene::random(&mut rng);
                let class = i % classes.len();
                set_class(&mut scene, class);
                (class, encode(&scene.draw(96, 96, &mut rng)))
            })
            .collect();
        let mut archive = tar::Builder::new(BufWriter::new(File::create(&path).map_err(Error::io(&path))?));
        for (i, (class, jpeg)) in pictures.iter().enumerate() {
            append(&mut archive, &path, &format!("s{i:07}.cls"), class.to_string().as_bytes())?;
            append(&mut archive, &path, &format!("s{i:07}.jpg"), jpeg)?;
        }
        archive.finish().map_err(Error::io(&path))?;
    }
    Ok(())
}
