use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};
use train::{Encoder, hex};

use crate::set::EvalSet;
use crate::stream::Context;
use crate::{Error, Result};

/// Prompts encoded between two looks at whether to stop.
const PROMPTS: usize = 1024;

/// Classifiers that a checkpoint's earlier evaluations made, by what they were made from: tasks with the same classes and
/// templates share one.
pub(crate) struct Cache {
    folder: PathBuf,
    checkpoint: String,
}

impl Cache {
    pub fn new(out: &Path, checkpoint: &str) -> Cache {
        Cache { folder: out.join("classifiers"), checkpoint: checkpoint.to_string() }
    }

    /// One weight vector a class, `[classes, embed_dim]`: the normalised mean of the normalised embeddings of its prompts.
    pub fn classifier(
        &self,
        encoder: &mut Encoder,
        set: &EvalSet,
        classnames: &[String],
        templates: &[String],
        context: &Context,
    ) -> Result<Vec<f32>> {
        let dim = encoder.config().embed_dim;
        let mut digest = Sha256::new();
        digest.update(format!("{}\0{classnames:?}\0{templates:?}", self.checkpoint));
        let path = self.folder.join(format!("{}.npy", hex(&digest.finalize()[..16])));
        if let Some(weights) = read(&path).filter(|weights| weights.len() == classnames.len() * dim) {
            return Ok(weights);
        }
        let total = (classnames.len() * templates.len()) as u64;
        let mut weights = Vec::with_capacity(classnames.len() * dim);
        for classes in classnames.chunks((PROMPTS / templates.len()).max(1)) {
            context.check(set)?;
            context.progress(", prompts of its classes", (weights.len() / dim * templates.len()) as u64, total, "prompts");
            let prompts: Vec<String> = classes.iter().flat_map(|name| templates.iter().map(|template| prompt(template, name))).collect();
            let mut features = encoder.encode_texts(&prompts)?;
            train::normalize_rows(&mut features, dim);
            for features in features.chunks_exact(templates.len() * dim) {
                let mut mean = vec![0.0; dim];
                for feature in features.chunks_exact(dim) {
                    mean.iter_mut().zip(feature).for_each(|(m, f)| *m += f / templates.len() as f32);
                }
                train::normalize_rows(&mut mean, dim);
                weights.extend(mean);
            }
        }
        std::fs::create_dir_all(&self.folder).map_err(Error::io(&self.folder))?;
        write(&path, &weights, dim).map_err(Error::io(&path))?;
        Ok(weights)
    }
}

/// Python's `template.format(c=classname)`.
fn prompt(template: &str, classname: &str) -> String {
    let (mut prompt, mut rest) = (String::new(), template);
    while let Some(at) = rest.find(['{', '}']) {
        prompt += &rest[..at];
        rest = &rest[at..];
        let (text, len) = match rest {
            _ if rest.starts_with("{c}") => (classname, 3),
            _ if rest.starts_with("{{") => ("{", 2),
            _ if rest.starts_with("}}") => ("}", 2),
            _ => (&rest[..1], 1),
        };
        prompt += text;
        rest = &rest[len..];
    }
    prompt + rest
}

fn read(path: &Path) -> Option<Vec<f32>> {
    npyz::NpyFile::new(std::io::BufReader::new(std::fs::File::open(path).ok()?)).ok()?.into_vec().ok()
}

fn write(path: &Path, weights: &[f32], dim: usize) -> std::io::Result<()> {
    use npyz::WriterBuilder;
    let mut bytes = Vec::new();
    let shape = [(weights.len() / dim) as u64, dim as u64];
    let mut writer = npyz::WriteOptions::new().default_dtype().shape(&shape).writer(&mut bytes).begin_nd()?;
    writer.extend(weights.iter().copied())?;
    writer.finish()?;
    let part = path.with_extension("part");
    std::fs::write(&part, bytes)?;
    storage::put_in_place(&part, path)
}

#[cfg(test)]
mod tests {
    #[test]
    fn prompts_as_python_formats_them() {
        assert_eq!(super::prompt("a {c} or {{c}} {c}.", "{x}"), "a {x} or {c} {x}.");
    }
}
