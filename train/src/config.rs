//! The shape of a model, as open_clip's configuration files give it.

use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::{Error, Result};

/// `open_clip_config.json`. Fields that change the model and are not supported are refused by name, never ignored.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OpenClipConfig {
    pub model_cfg: ModelConfig,
    #[serde(default)]
    pub preprocess_cfg: PreprocessConfig,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ModelConfig {
    pub embed_dim: usize,
    pub vision_cfg: VisionConfig,
    pub text_cfg: TextConfig,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VisionConfig {
    pub image_size: usize,
    pub layers: usize,
    pub width: usize,
    #[serde(default = "default_head_width")]
    pub head_width: usize,
    pub patch_size: usize,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TextConfig {
    pub context_length: usize,
    pub vocab_size: usize,
    pub width: usize,
    pub heads: usize,
    pub layers: usize,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PreprocessConfig {
    pub mean: [f32; 3],
    pub std: [f32; 3],
}

impl Default for PreprocessConfig {
    /// OpenAI's mean and standard deviation, of pixels in [0, 1].
    fn default() -> Self {
        PreprocessConfig { mean: [0.48145466, 0.4578275, 0.40821073], std: [0.26862954, 0.26130258, 0.27577711] }
    }
}

fn default_head_width() -> usize {
    64
}

impl ModelConfig {
    /// open_clip's configuration of this name, or `tiny`.
    pub fn named(name: &str) -> Option<ModelConfig> {
        let (embed_dim, patch_size, vision_layers, vision_width, text_width, text_heads) = match name {
            "ViT-B-32" => (512, 32, 12, 768, 512, 8),
            "ViT-B-16" => (512, 16, 12, 768, 512, 8),
            "ViT-L-14" => (768, 14, 24, 1024, 768, 12),
            "tiny" => {
                return Some(ModelConfig {
                    embed_dim: 64,
                    vision_cfg: VisionConfig { image_size: 64, layers: 3, width: 96, head_width: 32, patch_size: 16 },
                    text_cfg: TextConfig { context_length: 77, vocab_size: 49408, width: 64, heads: 2, layers: 2 },
                });
            }
            _ => return None,
        };
        Some(ModelConfig {
            embed_dim,
            vision_cfg: VisionConfig { image_size: 224, layers: vision_layers, width: vision_width, head_width: 64, patch_size },
            text_cfg: TextConfig { context_length: 77, vocab_size: 49408, width: text_width, heads: text_heads, layers: 12 },
        })
    }
}

impl VisionConfig {
    pub fn heads(&self) -> usize {
        self.width / self.head_width
    }

    pub fn patches(&self) -> usize {
        (self.image_size / self.patch_size).pow(2)
    }

    /// The class token and the patches.
    pub fn tokens(&self) -> usize {
        1 + self.patches()
    }
}

impl OpenClipConfig {
    pub fn read(path: &Path) -> Result<OpenClipConfig> {
        let text = std::fs::read_to_string(path).map_err(Error::io(path))?;
        let config: OpenClipConfig = serde_json::from_str(&text).map_err(|source| Error::Config { path: path.to_path_buf(), source })?;
        config.check(path)?;
        Ok(config)
    }

    fn check(&self, path: &Path) -> Result<()> {
        let (vision, text) = (&self.model_cfg.vision_cfg, &self.model_cfg.text_cfg);
        let wrong = |what: &'static str, value: usize, of: usize| Err(Error::ConfigShape { path: path.to_path_buf(), what, value, of });
        let divides = |part: usize, whole: usize| part > 0 && whole > 0 && whole.is_multiple_of(part);
        if !divides(vision.patch_size, vision.image_size) {
            return wrong("patch_size must divide image_size", vision.patch_size, vision.image_size);
        }
        if !divides(vision.head_width, vision.width) {
            return wrong("head_width must divide the vision width", vision.head_width, vision.width);
        }
        if !divides(text.heads, text.width) {
            return wrong("heads must divide the text width", text.heads, text.width);
        }
        if text.context_length < 3 {
            return wrong("context_length must be at least", text.context_length, 3);
        }
        if self.model_cfg.embed_dim == 0 || text.vocab_size < crate::tokenizer::VOCAB_SIZE {
            return wrong("vocab_size must be at least that of CLIP's tokenizer", text.vocab_size, crate::tokenizer::VOCAB_SIZE);
        }
        Ok(())
    }
}
