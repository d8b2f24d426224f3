use std::collections::HashMap;
use std::path::Path;
use std::sync::{Arc, Mutex};

use engine::{Embed, Options, Session};
use storage::Pool;
use train::{Device, Encoder, normalize_rows};

use super::{allocator, open_encoder};
use crate::cli::Queries;
use crate::progress::Meter;
use crate::{Error, Result};

/// A session over a pool, with the flags that all queries take and a meter for what takes long.
pub(crate) async fn session(pool: Pool, queries: &Queries, meter: Arc<Meter>) -> Result<Session> {
    allocator::keep_memory();
    let options = Options {
        memory: queries.memory.try_into().unwrap_or(usize::MAX),
        resources: queries.resources.clone(),
        embed: Some(Arc::new(Models::default())),
        on_progress: Arc::new(move |progress| meter.show(progress)),
    };
    if options.resources.as_ref().is_some_and(|folder| !folder.is_dir()) {
        let message = format!("no such folder: {}", options.resources.unwrap_or_default().display());
        return Err(Error::Usage { message, hint: "--resources names the folder of the optional files; tarn resources lists them" });
    }
    Ok(Session::over(pool, options).await?)
}

type Failed = Box<dyn std::error::Error + Send + Sync>;

/// Checkpoints that queries have named, each read once.
#[derive(Default)]
struct Models(Mutex<HashMap<String, Encoder>>);

impl Models {
    fn with<T>(&self, model: Option<&str>, work: impl FnOnce(&mut Encoder) -> Result<T, Failed>) -> Result<T, Failed> {
        let named = model.map(str::to_string).or_else(|| std::env::var("TARN_MODEL").ok());
        let named = named.ok_or("no model is named: give a checkpoint's folder as the second argument, or in TARN_MODEL")?;
        let mut open = self.0.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        if !open.contains_key(&named) {
            open.insert(named.clone(), open_encoder(Path::new(&named), Device::Cpu)?);
        }
        work(open.get_mut(&named).expect("opened above"))
    }
}

impl Embed for Models {
    fn text(&self, text: &str, model: Option<&str>) -> Result<Vec<f32>, Failed> {
        self.with(model, |encoder| Ok(normalized(encoder.encode_texts(&[text])?)))
    }

    fn image(&self, path: &str, model: Option<&str>) -> Result<Vec<f32>, Failed> {
        self.with(model, |encoder| {
            let bytes = std::fs::read(path).map_err(|e| format!("{path}: {e}"))?;
            let pixels = encoder.preprocess(&bytes).map_err(|e| format!("{path}: {e}"))?;
            Ok(normalized(encoder.encode_images(&[pixels])?))
        })
    }
}

fn normalized(mut vector: Vec<f32>) -> Vec<f32> {
    let dim = vector.len();
    normalize_rows(&mut vector, dim);
    vector
}
