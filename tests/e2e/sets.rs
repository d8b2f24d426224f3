//! Evaluation sets of every kind, made on the spot, and what their metrics must be, computed plainly.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use arrow::array::{ArrayRef, BinaryArray, ListArray, RecordBatch, StringArray, StructArray};
use arrow::buffer::OffsetBuffer;
use arrow::datatypes::{DataType, Field};
use eval::{Kind, Task, tasks};
use train::parameters::Parameters;
use train::{Checkpoint, Device, Encoder, ModelConfig, OpenClipConfig, PreprocessConfig, normalize_rows};

use crate::{Sandbox, source};

pub(crate) fn checkpoint() -> Checkpoint {
    let model_cfg = ModelConfig::named("tiny").unwrap();
    let values = Parameters::new(&model_cfg).draw(9);
    Checkpoint { config: OpenClipConfig { model_cfg, preprocess_cfg: PreprocessConfig::default() }, values }
}

pub(crate) const CLASSES: [&str; 6] = ["cat", "dog", "sailing ship", "tree", "car", "house"];
pub(crate) const TEMPLATES: [&str; 2] = ["a photo of a {c}.", "a drawing of a {c}."];
pub(crate) const IMAGES: usize = 12;

/// What the model says, computed plainly.
pub(crate) struct Oracle {
    encoder: Encoder,
    images: Vec<Vec<f64>>,
}

impl Oracle {
    pub fn new() -> Oracle {
        let mut encoder = Encoder::new(checkpoint(), Device::Cpu).unwrap();
        let pixels: Vec<Vec<u8>> = (0..IMAGES).map(|i| encoder.preprocess(&source::picture(i)).unwrap()).collect();
        let features = encoder.encode_images(&pixels).unwrap();
        Oracle { encoder, images: unit(features) }
    }

    fn texts(&mut self, texts: &[String]) -> Vec<Vec<f64>> {
        unit(self.encoder.encode_texts(texts).unwrap())
    }

    /// The classes by their logits, best first, of each image.
    fn rankings(&mut self, classes: &[String], templates: &[String]) -> Vec<Vec<usize>> {
        let mut weights = Vec::new();
        for class in classes {
            let prompts: Vec<String> = templates.iter().map(|template| template.replace("{c}", class)).collect();
            let features = self.texts(&prompts);
            let mean: Vec<f64> = (0..features[0].len()).map(|i| features.iter().map(|f| f[i]).sum::<f64>()).collect();
            let norm = dot(&mean, &mean).sqrt();
            weights.push(mean.into_iter().map(|x| x / norm).collect::<Vec<f64>>());
        }
        let rank = |image: &Vec<f64>| {
            let mut order: Vec<usize> = (0..weights.len()).collect();
            order.sort_by(|a, b| dot(image, &weights[*b]).total_cmp(&dot(image, &weights[*a])));
            order
        };
        self.images.iter().map(rank).collect()
    }
}

fn unit(mut features: Vec<f32>) -> Vec<Vec<f64>> {
    normalize_rows(&mut features, 64);
    features.chunks_exact(64).map(|row| row.iter().map(|x| f64::from(*x)).collect()).collect()
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

pub(crate) fn npy(values: &[i64]) -> Vec<u8> {
    let header = format!("{{'descr': '<i8', 'fortran_order': False, 'shape': ({},), }}", values.len());
    let padded = format!("{header:<117}\n");
    [b"\x93NUMPY\x01\x00", &118u16.to_le_bytes()[..], padded.as_bytes(), &values.iter().flat_map(|x| x.to_le_bytes()).collect::<Vec<u8>>()]
        .concat()
}

/// Members of sample i with these further ones, by extension.
pub(crate) fn members(i: usize, more: Vec<(&str, Vec<u8>)>) -> Vec<(String, Vec<u8>)> {
    let key = format!("s{i:07}");
    let more = more.into_iter().map(|(extension, bytes)| (format!("{key}.{extension}"), bytes));
    more.chain([(format!("{key}.jpg"), source::picture(i))]).collect()
}

/// Two shards, and the number of them.
pub(crate) fn shards(t: &Sandbox, folder: &str, samples: Vec<Vec<(String, Vec<u8>)>>) {
    let second = samples.len() / 2;
    t.write(&format!("{folder}/test/nshards.txt"), "2\n");
    t.write(&format!("{folder}/test/0.tar"), source::tar(samples[..second].concat()));
    t.write(&format!("{folder}/test/1.tar"), source::tar(samples[second..].concat()));
}

pub(crate) fn classes(t: &Sandbox, folder: &str, classes: &[String], templates: &[String]) {
    t.write(&format!("{folder}/classnames.txt"), classes.join("\n") + "\n");
    t.write(&format!("{folder}/zeroshot_classification_templates.txt"), templates.join("\n") + "\n");
}

pub(crate) fn texts(texts: &[&str]) -> Vec<String> {
    texts.iter().map(|text| text.to_string()).collect()
}

/// Labels of which a third are the best class, a third the third best, a third the worst.
fn labels(rankings: &[Vec<usize>]) -> Vec<usize> {
    rankings.iter().enumerate().map(|(i, ranking)| ranking[[0, 2, 5][i % 3]]).collect()
}

/// A classification with the fields of the task, and what its main metric must be.
pub(crate) fn classification(t: &Sandbox, folder: &str, task: &Task, oracle: &mut Oracle) -> f64 {
    let rankings = oracle.rankings(&texts(&CLASSES), &texts(&TEMPLATES));
    let labels = labels(&rankings);
    classes(t, folder, &texts(&CLASSES), &texts(&TEMPLATES));
    let group = |i: usize| [0i64, 1, 1, 5][i % 4];
    let fields = |i: usize| npy(&task.fields.iter().map(|_| group(i)).collect::<Vec<i64>>());
    let sample = |i: usize| {
        let npy = (!task.fields.is_empty()).then(|| ("npy", fields(i)));
        members(i, [("cls", labels[i].to_string().into_bytes())].into_iter().chain(npy).collect())
    };
    shards(t, folder, (0..IMAGES).map(sample).collect());
    let hit = |i: usize, k: usize| rankings[i][..k].contains(&labels[i]);
    let mean = |of: &dyn Fn(usize) -> bool, k: usize| {
        let of: Vec<usize> = (0..IMAGES).filter(|i| of(*i)).collect();
        of.iter().filter(|i| hit(**i, k)).count() as f64 / of.len() as f64
    };
    let worst = |k: usize, groups: &[i64]| groups.iter().map(|g| mean(&|i| group(i) == *g, k)).fold(1.0, f64::min);
    match task.metric.as_deref().unwrap_or("acc1") {
        "acc1" => mean(&|_| true, 1),
        "acc_top5_wg" => worst(5, &[0, 1, 5]),
        "acc_wg" => worst(1, &[0, 1, 5]),
        "acc_worst_region" => worst(1, &[0, 1]),
        other => {
            let occurring: Vec<usize> = (0..CLASSES.len()).filter(|class| labels.contains(class)).collect();
            let of_class = |class: usize| {
                let labelled = labels.iter().filter(|label| **label == class).count() as f64;
                let predicted = rankings.iter().filter(|ranking| ranking[0] == class).count() as f64;
                let right = (0..IMAGES).filter(|i| labels[*i] == class && hit(*i, 1)).count() as f64;
                match other {
                    "mean_per_class_recall" => right / labelled,
                    "F1-macro_all" if right == 0.0 => 0.0,
                    "F1-macro_all" => 2.0 / (labelled / right + predicted / right),
                    _ => panic!("{other}"),
                }
            };
            occurring.iter().map(|class| of_class(*class)).sum::<f64>() / occurring.len() as f64
        }
    }
}

pub(crate) fn captions(i: usize) -> Vec<String> {
    (0..1 + i % 3).map(|k| format!("caption {k} of picture {i}")).collect()
}

/// The mean of both recalls at 1, by comparing all with all.
fn mean_recall(oracle: &mut Oracle) -> f64 {
    let all: Vec<(usize, String)> = (0..IMAGES).flat_map(|i| captions(i).into_iter().map(move |caption| (i, caption))).collect();
    let features = oracle.texts(&all.iter().map(|(_, caption)| caption.clone()).collect::<Vec<_>>());
    let best = |query: &Vec<f64>, others: &[Vec<f64>]| {
        (0..others.len()).reduce(|a, b| if dot(query, &others[b]) > dot(query, &others[a]) { b } else { a }).unwrap()
    };
    let found = all.iter().zip(&features).filter(|((i, _), caption)| best(caption, &oracle.images) == *i).count();
    let finding = oracle.images.iter().enumerate().filter(|(i, image)| all[best(image, &features)].0 == *i).count();
    0.5 * (found as f64 / all.len() as f64 + finding as f64 / IMAGES as f64)
}

pub(crate) fn strings(lists: &[Vec<String>]) -> ArrayRef {
    let values: ArrayRef = Arc::new(StringArray::from(lists.concat()));
    list(values, lists.iter().map(Vec::len))
}

fn list(values: ArrayRef, lengths: impl IntoIterator<Item = usize>) -> ArrayRef {
    let field = Arc::new(Field::new("item", values.data_type().clone(), true));
    Arc::new(ListArray::new(field, OffsetBuffer::from_lengths(lengths), values, None))
}

/// Hugging Face's column of images: bytes, or paths to files that lie elsewhere.
pub(crate) fn image_column(images: &[usize], elsewhere: Option<&Path>) -> ArrayRef {
    let bytes = images.iter().map(|i| elsewhere.is_none().then(|| source::picture(*i)));
    let bytes: ArrayRef = Arc::new(bytes.collect::<BinaryArray>());
    let path = |i: usize| elsewhere.map_or(format!("{i}.jpg"), |folder| folder.join(format!("{i}.jpg")).display().to_string());
    let paths: ArrayRef = Arc::new(StringArray::from_iter_values(images.iter().map(|i| path(*i))));
    let field = |name: &str, of: DataType| Arc::new(Field::new(name, of, true));
    Arc::new(StructArray::from(vec![(field("bytes", DataType::Binary), bytes), (field("path", DataType::Utf8), paths)]))
}

pub(crate) fn batch(columns: Vec<(&str, ArrayRef)>) -> RecordBatch {
    RecordBatch::try_from_iter(columns).unwrap()
}

pub(crate) fn parquet(t: &Sandbox, name: &str, batch: &RecordBatch) {
    let mut bytes = Vec::new();
    let mut writer = parquet::arrow::ArrowWriter::try_new(&mut bytes, batch.schema(), None).unwrap();
    writer.write(batch).unwrap();
    writer.close().unwrap();
    t.write(name, bytes);
}

/// A stream in a file, as the library `datasets` keeps it.
fn arrow_stream(t: &Sandbox, name: &str, batch: &RecordBatch) {
    let mut bytes = Vec::new();
    let mut writer = arrow::ipc::writer::StreamWriter::try_new(&mut bytes, &batch.schema()).unwrap();
    writer.write(batch).unwrap();
    writer.finish().unwrap();
    drop(writer);
    t.write(name, bytes);
}

/// Questions with 5, 6, 10 and 12 candidates, and the mean Jaccard index of the last two kinds.
fn association(t: &Sandbox, folder: &str, oracle: &mut Oracle) -> f64 {
    let sizes = [5usize, 6, 10, 12, 12];
    let cues = ["Apple", "ship", "Old", "rust", "tree"];
    let candidates: Vec<Vec<usize>> = sizes.iter().enumerate().map(|(q, n)| (0..*n).map(|i| (i + q) % IMAGES).collect()).collect();
    let names: Vec<Vec<String>> = candidates.iter().map(|images| images.iter().map(|i| format!("picture {i}")).collect()).collect();
    let answers: Vec<Vec<String>> = names.iter().enumerate().map(|(q, names)| names[1..3 + q % 2].to_vec()).collect();
    let batch = batch(vec![
        ("candidates", strings(&names)),
        ("candidate_images", list(image_column(&candidates.concat(), None), sizes)),
        ("cue", Arc::new(StringArray::from(cues.to_vec()))),
        ("associations", strings(&answers)),
    ]);
    parquet(t, &format!("{folder}/data/test-00000-of-00001.parquet"), &batch);
    parquet(t, &format!("{folder}/data/train-00000-of-00001.parquet"), &batch);
    let mut scores = Vec::new();
    for q in 2..sizes.len() {
        let prompt = format!("{} {}", if "aeiou".contains(&cues[q].to_lowercase()[..1]) { "An" } else { "A" }, cues[q].to_lowercase());
        let cue = oracle.texts(&[prompt]).remove(0);
        let mut order: Vec<usize> = (0..sizes[q]).collect();
        order.sort_by(|a, b| dot(&cue, &oracle.images[candidates[q][*b]]).total_cmp(&dot(&cue, &oracle.images[candidates[q][*a]])));
        let chosen: Vec<&String> = order[..answers[q].len()].iter().map(|i| &names[q][*i]).collect();
        let both = answers[q].iter().filter(|answer| chosen.contains(answer)).count();
        scores.push(both as f64 / (2 * answers[q].len() - both) as f64);
    }
    scores.iter().sum::<f64>() / scores.len() as f64
}

/// FairFace's form, and its accuracy of gender.
fn faces(t: &Sandbox, folder: &str, oracle: &mut Oracle) -> f64 {
    let toxic: Vec<String> = (0..24).map(|i| format!("label {i}")).collect();
    let objectives: [(&str, Vec<String>); 4] = [
        ("race", texts(&["one", "two", "three"])),
        ("gender", texts(&["man", "woman"])),
        ("age", texts(&["young", "old"])),
        ("toxic", toxic),
    ];
    let names: Vec<String> =
        objectives.iter().flat_map(|(objective, names)| names.iter().map(move |name| format!("{objective}:{name}"))).collect();
    let templates: Vec<String> = objectives.iter().map(|(objective, _)| format!("{objective}:the {objective} is {{c}}: see")).collect();
    classes(t, folder, &names, &templates);
    let gender = |i: usize| (i % 2) as i64;
    shards(
        t,
        folder,
        (0..IMAGES).map(|i| members(i, vec![("npy", npy(&[0, gender(i), (i % 3) as i64, i64::from(i % 3 != 1)]))])).collect(),
    );
    let rankings = oracle.rankings(&objectives[1].1, &texts(&["the gender is {c}: see"]));
    rankings.iter().enumerate().filter(|(i, ranking)| ranking[0] as i64 == gender(*i)).count() as f64 / IMAGES as f64
}

/// The folder that DataComp's downloader makes of a task.
pub(crate) fn folder_of(task: &Task) -> String {
    format!("sets/wds_{}_test", task.key.strip_prefix("fairness/").unwrap_or(&task.key).replace('/', "-"))
}

/// All forty tasks, and their main metrics.
pub(crate) fn make_forty(t: &Sandbox, oracle: &mut Oracle) -> BTreeMap<String, f64> {
    let mut expected = BTreeMap::new();
    for task in tasks() {
        let score = match (task.kind, task.name.as_str()) {
            (Kind::Classification, _) => classification(t, &folder_of(task), task, oracle),
            (Kind::Faces, _) => faces(t, &folder_of(task), oracle),
            (Kind::Association, _) => association(t, "sets/hf_cache/datasets--nlphuji--winogavil/snapshots/1f", oracle),
            (Kind::Retrieval, "Flickr") => {
                t.write("sets/wds_flickr30k_test/dataset_type.txt", "retrieval");
                let sample = |i: usize| members(i, vec![("txt", captions(i).join("\n").into_bytes())]);
                shards(t, "sets/wds_flickr30k_test", (0..IMAGES).map(sample).collect());
                mean_recall(oracle)
            }
            (Kind::Retrieval, _) => {
                let images: Vec<usize> = (0..IMAGES).collect();
                let columns = vec![
                    ("image", image_column(&images, None)),
                    ("caption", strings(&images.iter().map(|i| captions(*i)).collect::<Vec<_>>())),
                ];
                let name = task.key.rsplit('/').next().unwrap();
                arrow_stream(t, &format!("sets/hf_cache/nlphuji___{name}/TEST/1.1.0/ab/{name}-test.arrow"), &batch(columns));
                mean_recall(oracle)
            }
        };
        expected.insert(task.key.clone(), score);
    }
    expected
}
