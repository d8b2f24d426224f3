use std::path::Path;
use std::sync::Arc;

use rayon::prelude::*;
use sha2::{Digest, Sha256};

use crate::backend::{Pixels, Span};
use crate::checkpoint::{Checkpoint, f32_bytes};
use crate::config::{ModelConfig, PreprocessConfig};
use crate::device::Device;
use crate::model::{Capacity, Model, Tokens};
use crate::parameters::part;
use crate::text::Tokenizer;
use crate::{Result, image};

/// A loaded checkpoint that turns images and captions into features.
pub struct Encoder {
    model: Model,
    preprocess: PreprocessConfig,
    tokenizer: Arc<Tokenizer>,
    features: Span,
    batch: usize,
}

impl Encoder {
    /// Opens a checkpoint's folder.
    pub fn open(folder: &Path, device: Device) -> Result<Encoder> {
        Encoder::new(Checkpoint::read(folder)?, device)
    }

    pub fn new(checkpoint: Checkpoint, device: Device) -> Result<Encoder> {
        let config = &checkpoint.config;
        let batch = device.largest_micro_batch();
        let capacity = Capacity::of(&config.model_cfg, batch, config.model_cfg.text_cfg.context_length, 0);
        let mut model = Model::new(device.open(&config.model_cfg)?, &config.model_cfg, &checkpoint.values, capacity)?;
        let features = model.backend.alloc(batch * config.model_cfg.embed_dim);
        model.backend.check()?;
        Ok(Encoder { model, preprocess: config.preprocess_cfg.clone(), tokenizer: Arc::default(), features, batch })
    }

    /// Samples encoded at a time.
    pub fn batch(&self) -> usize {
        self.batch
    }

    /// Of the configuration and all weights: what a feature depends on.
    pub fn digest(&self) -> Result<[u8; 32]> {
        let mut digest = Sha256::new();
        digest.update(serde_json::to_vec(self.config()).expect("a configuration is plain data"));
        digest.update(serde_json::to_vec(&self.preprocess).expect("a configuration is plain data"));
        for parameter in &self.model.parameters.all {
            digest.update(f32_bytes(&self.model.backend.read(part(self.model.values, &parameter.range))));
        }
        self.model.backend.check()?;
        Ok(digest.finalize().into())
    }

    pub fn config(&self) -> &ModelConfig {
        &self.model.config
    }

    /// exp of the parameter `logit_scale`.
    pub fn logit_scale(&self) -> f32 {
        self.model.logit_scale()
    }

    /// Pixels `[size, size, 3]` as in evaluation: resized and centre-cropped.
    pub fn preprocess(&self, bytes: &[u8]) -> Result<Vec<u8>> {
        self.preprocessor()(bytes)
    }

    /// `preprocess` for other threads, while the encoder is at work.
    pub fn preprocessor(&self) -> impl Fn(&[u8]) -> Result<Vec<u8>> + Send + Sync + use<> {
        let size = self.model.config.vision_cfg.image_size;
        move |bytes| image::resize_center_crop(&image::decode(bytes)?, size)
    }

    /// `[n, embed_dim]`, not normalised, from the pixels of `preprocess`.
    pub fn encode_images(&mut self, pixels: &[Vec<u8>]) -> Result<Vec<f32>> {
        let PreprocessConfig { mean, std, .. } = self.preprocess;
        let mut features = Vec::with_capacity(pixels.len() * self.model.config.embed_dim);
        for pixels in pixels.chunks(self.batch) {
            let bytes = pixels.concat();
            features.extend(self.encode_pixels(Pixels::Bytes { bytes: &bytes, mean, std }, pixels.len())?);
        }
        Ok(features)
    }

    /// `[n, embed_dim]`, not normalised, of n images, at most `batch`.
    pub fn encode_pixels(&mut self, pixels: Pixels, n: usize) -> Result<Vec<f32>> {
        let out = self.features.first(n * self.model.config.embed_dim);
        self.model.encode_images(0, out, pixels);
        self.read(out)
    }

    fn read(&mut self, features: Span) -> Result<Vec<f32>> {
        let values = self.model.backend.read(features);
        self.model.backend.check()?;
        Ok(values)
    }

    /// `[n, embed_dim]`, not normalised.
    pub fn encode_texts<S: AsRef<str> + Sync>(&mut self, texts: &[S]) -> Result<Vec<f32>> {
        let context_length = self.model.config.text_cfg.context_length;
        let tokenizer = &self.tokenizer;
        let tokens: Vec<Vec<u32>> = texts.par_iter().map(|text| tokenizer.encode(text.as_ref(), context_length)).collect();
        let mut features = Vec::with_capacity(texts.len() * self.model.config.embed_dim);
        for tokens in tokens.chunks(self.batch) {
            let tokens = Tokens::new(tokens, &self.model.config.text_cfg);
            let out = self.features.first(tokens.ends.len() * self.model.config.embed_dim);
            self.model.encode_texts(0, out, &tokens);
            features.extend(self.read(out)?);
        }
        Ok(features)
    }
}

/// Divides each row of `features[n, dim]` by its norm.
pub fn normalize_rows(features: &mut [f32], dim: usize) {
    for row in features.chunks_exact_mut(dim) {
        let norm = row.iter().map(|x| x * x).sum::<f32>().sqrt().max(1e-12);
        row.iter_mut().for_each(|x| *x /= norm);
    }
}
