//! The shape of a model, as open_clip's configuration files give it.

use std::path::Path;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::backend::Activation;
use crate::checkpoint::write_whole;
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
pub struct ModelConfig {
    pub embed_dim: usize,
    #[serde(default, skip_serializing_if = "is_default")]
    pub quick_gelu: bool,
    /// Where the parameter `logit_scale` starts, ln(1 / 0.07) unless given.
    #[serde(default, skip_serializing_if = "is_default")]
    pub init_logit_scale: Option<f32>,
    pub vision_cfg: VisionConfig,
    pub text_cfg: TextConfig,
    #[serde(flatten)]
    pub other: Map<String, Value>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct VisionConfig {
    pub image_size: usize,
    pub layers: usize,
    pub width: usize,
    #[serde(default = "default_head_width")]
    pub head_width: usize,
    pub patch_size: usize,
    #[serde(default = "default_mlp_ratio", skip_serializing_if = "is_default_mlp_ratio")]
    pub mlp_ratio: f64,
    #[serde(default, skip_serializing_if = "is_default")]
    pub no_ln_pre: bool,
    #[serde(default, skip_serializing_if = "is_default")]
    pub norm_kwargs: Option<NormConfig>,
    #[serde(flatten)]
    pub other: Map<String, Value>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TextConfig {
    #[serde(default = "default_context_length")]
    pub context_length: usize,
    #[serde(default = "default_vocab_size")]
    pub vocab_size: usize,
    pub width: usize,
    pub heads: usize,
    pub layers: usize,
    #[serde(default = "default_mlp_ratio", skip_serializing_if = "is_default_mlp_ratio")]
    pub mlp_ratio: f64,
    #[serde(default, skip_serializing_if = "is_default")]
    pub no_causal_mask: bool,
    #[serde(default, skip_serializing_if = "is_default")]
    pub norm_kwargs: Option<NormConfig>,
    #[serde(flatten)]
    pub other: Map<String, Value>,
}

/// Of layer norms.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NormConfig {
    #[serde(default = "default_eps")]
    pub eps: f32,
}

/// Of PyTorch's `LayerNorm`.
fn default_eps() -> f32 {
    1e-5
}

/// Of pixels in [0, 1].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PreprocessConfig {
    pub mean: [f32; 3],
    pub std: [f32; 3],
    #[serde(flatten)]
    pub other: Map<String, Value>,
}

/// Fields that open_clip knows and that are taken at these values only: those that leave the model as it is.
/// `*` is any value, for what says nothing about the model.
const ONLY: &[(&str, &str)] = &[
    // Of the model.
    ("custom_text", "[false]"),
    ("init_logit_bias", "[null]"),
    ("nonscalar_logit_scale", "[false]"),
    ("cast_dtype", "*"),
    ("output_dict", "*"),
    // Of both towers.
    ("ls_init_value", "[null]"),
    ("act_kwargs", "[null, {}]"),
    ("output_tokens", "[false]"),
    ("block_type", r#"[null, "default"]"#),
    ("qk_norm", "[false]"),
    ("scaled_cosine_attn", "[false]"),
    ("scale_heads", "[false]"),
    ("scale_attn_inner", "[false]"),
    ("scale_attn", "[false]"),
    ("scale_fc", "[false]"),
    // With the class token alone pooled, the norm before and after pooling are the same.
    ("final_ln_after_pool", "*"),
    // Of the image tower.
    ("patch_dropout", "[0, 0.0]"),
    ("attentional_pool", "[false]"),
    ("attn_pooler_queries", "*"),
    ("attn_pooler_heads", "*"),
    ("pos_embed_type", r#"["learnable"]"#),
    ("timm_model_name", "[null]"),
    ("timm_model_pretrained", "*"),
    ("timm_pool", "*"),
    ("timm_proj", "*"),
    ("timm_proj_bias", "*"),
    ("timm_drop", "*"),
    ("timm_drop_path", "*"),
    // Of the text tower.
    ("hf_tokenizer_name", "[null]"),
    ("tokenizer_mode", r#"[null, "clip"]"#),
    ("tokenizer_kwargs", "[null, {}]"),
    ("embed_cls", "[false]"),
    ("pad_id", "[0]"),
    ("eos_id", "*"),
    ("proj_bias", "[false]"),
    ("proj_type", r#"["linear"]"#),
    ("hf_model_name", "[null]"),
    ("hf_model_pretrained", "*"),
    ("hf_proj_type", "*"),
    ("hf_pooler_type", "*"),
];

impl Default for PreprocessConfig {
    /// OpenAI's mean and standard deviation.
    fn default() -> Self {
        let (mean, std) = ([0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711]);
        PreprocessConfig { mean, std, other: Map::new() }
    }
}

fn default_head_width() -> usize {
    64
}

fn default_mlp_ratio() -> f64 {
    4.0
}

fn is_default_mlp_ratio(ratio: &f64) -> bool {
    *ratio == default_mlp_ratio()
}

fn default_context_length() -> usize {
    77
}

fn default_vocab_size() -> usize {
    crate::text::VOCAB_SIZE
}

fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

impl ModelConfig {
    /// open_clip's configuration of this name, or `tiny`.
    pub fn named(name: &str) -> Option<ModelConfig> {
        let (name, quick_gelu) = match name.strip_suffix("-quickgelu") {
            Some(name) => (name, true),
            None => (name, false),
        };
        let [embed_dim, image_size, patch_size, vision_layers, vision_width, text_width, text_heads] = match name {
            "ViT-B-32" => [512, 224, 32, 12, 768, 512, 8],
            "ViT-B-16" => [512, 224, 16, 12, 768, 512, 8],
            "ViT-L-14" => [768, 224, 14, 24, 1024, 768, 12],
            "ViT-L-14-336" => [768, 336, 14, 24, 1024, 768, 12],
            "tiny" if !quick_gelu => [64, 64, 16, 3, 96, 64, 2],
            _ => return None,
        };
        let (head_width, text_layers) = if name == "tiny" { (32, 2) } else { (64, 12) };
        Some(ModelConfig {
            embed_dim,
            quick_gelu,
            init_logit_scale: None,
            vision_cfg: VisionConfig {
                image_size,
                layers: vision_layers,
                width: vision_width,
                head_width,
                patch_size,
                mlp_ratio: default_mlp_ratio(),
                no_ln_pre: false,
                norm_kwargs: None,
                other: Map::new(),
            },
            text_cfg: TextConfig {
                context_length: default_context_length(),
                vocab_size: default_vocab_size(),
                width: text_width,
                heads: text_heads,
                layers: text_layers,
                mlp_ratio: default_mlp_ratio(),
                no_causal_mask: false,
                norm_kwargs: None,
                other: Map::new(),
            },
            other: Map::new(),
        })
    }

    /// One of open_clip's `model_configs/*.json`, or an `open_clip_config.json`.
    pub fn read(path: &Path) -> Result<ModelConfig> {
        let text = std::fs::read_to_string(path).map_err(Error::io(path))?;
        let wrong = |source| Error::Config { path: path.to_path_buf(), source };
        let mut value: Value = serde_json::from_str(&text).map_err(wrong)?;
        let inner = value.get_mut("model_cfg").map(Value::take).unwrap_or(value);
        // Numbers for us, and lists for ResNets and for pictures that are not square.
        for (field, name) in [("vision_cfg.layers", "layers"), ("vision_cfg.image_size", "image_size")] {
            let value = &inner["vision_cfg"][name];
            if value.is_array() {
                return Err(Error::ConfigField { path: path.to_path_buf(), field: field.into(), value: value.to_string() });
            }
        }
        let config: ModelConfig = serde_json::from_value(inner).map_err(wrong)?;
        config.check(path)?;
        Ok(config)
    }

    pub fn activation(&self) -> Activation {
        if self.quick_gelu { Activation::QuickGelu } else { Activation::Gelu }
    }

    /// Floating-point operations of one sample's forward pass, a product and a sum being two: every matrix product of
    /// the model for a caption of so many tokens (open_clip pads all to the context length).
    pub fn flops(&self, tokens: usize) -> f64 {
        let block = |tokens: usize, width: usize, ratio: f64| {
            let (tokens, width) = (tokens as f64, width as f64);
            tokens * width * width * (8.0 + 4.0 * ratio) + 4.0 * tokens * tokens * width
        };
        let (vision, text) = (&self.vision_cfg, &self.text_cfg);
        let patches = 2.0 * (vision.patches() * vision.width * 3 * vision.patch_size.pow(2)) as f64;
        let projections = 2.0 * ((vision.width + text.width) * self.embed_dim) as f64;
        patches
            + projections
            + vision.layers as f64 * block(vision.tokens(), vision.width, vision.mlp_ratio)
            + text.layers as f64 * block(tokens, text.width, text.mlp_ratio)
    }

    /// That the model can be built; `path` is where it was read.
    pub(crate) fn check(&self, path: &Path) -> Result<()> {
        let (vision, text) = (&self.vision_cfg, &self.text_cfg);
        only(path, "", &self.other, &[])?;
        only(path, "vision_cfg.", &vision.other, &[("pool_type", "tok")])?;
        only(path, "text_cfg.", &text.other, &[("pool_type", "argmax")])?;
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
        for (field, hidden, ratio) in [("vision_cfg", vision.hidden(), vision.mlp_ratio), ("text_cfg", text.hidden(), text.mlp_ratio)] {
            if !(1..=LARGEST).contains(&hidden) {
                let (field, value) = (format!("{field}.mlp_ratio"), ratio.to_string());
                return Err(Error::ConfigField { path: path.to_path_buf(), field, value });
            }
        }
        for (what, value) in [
            ("embed_dim must be from 1 to 65536", self.embed_dim),
            ("image_size must be from 1 to 65536", vision.image_size),
            ("the vision width must be from 1 to 65536", vision.width),
            ("the vision layers must be from 1 to 65536", vision.layers),
            ("context_length must be from 1 to 65536", text.context_length),
            ("the text width must be from 1 to 65536", text.width),
            ("the text layers must be from 1 to 65536", text.layers),
        ] {
            if !(1..=LARGEST).contains(&value) {
                return wrong(what, value, LARGEST);
            }
        }
        if text.vocab_size > LARGEST * 256 {
            return wrong("vocab_size must be at most", text.vocab_size, LARGEST * 256);
        }
        if text.vocab_size < crate::text::VOCAB_SIZE {
            return wrong("vocab_size must be at least that of CLIP's tokenizer", text.vocab_size, crate::text::VOCAB_SIZE);
        }
        Ok(())
    }
}

/// Refuses fields that are not known, or known to change the model in a way that is not supported.
fn only(path: &Path, place: &str, fields: &Map<String, Value>, also: &[(&str, &str)]) -> Result<()> {
    for (name, value) in fields {
        let known = ONLY.iter().find(|(known, _)| known == name);
        let taken = match also.iter().find(|(known, _)| known == name) {
            Some((_, only)) => value == only,
            None => known.is_some_and(|(_, only)| {
                *only == "*" || serde_json::from_str::<Vec<Value>>(only).is_ok_and(|values| values.contains(value))
            }),
        };
        if !taken {
            return Err(Error::ConfigField { path: path.to_path_buf(), field: format!("{place}{name}"), value: value.to_string() });
        }
    }
    Ok(())
}

/// Sizes beyond this are a slip.
const LARGEST: usize = 1 << 16;

impl TextConfig {
    /// The width between the two layers of the MLP.
    pub fn hidden(&self) -> usize {
        (self.width as f64 * self.mlp_ratio) as usize
    }

    pub fn eps(&self) -> f32 {
        self.norm_kwargs.map_or_else(default_eps, |norm| norm.eps)
    }
}

impl VisionConfig {
    /// The width between the two layers of the MLP.
    pub fn hidden(&self) -> usize {
        (self.width as f64 * self.mlp_ratio) as usize
    }

    pub fn eps(&self) -> f32 {
        self.norm_kwargs.map_or_else(default_eps, |norm| norm.eps)
    }

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
    pub fn write(&self, path: &Path) -> Result<()> {
        let mut text = serde_json::to_string_pretty(self).expect("a configuration is plain data");
        text.push('\n');
        write_whole(path, |file| std::io::Write::write_all(file, text.as_bytes()))
    }

    pub fn read(path: &Path) -> Result<OpenClipConfig> {
        let text = std::fs::read_to_string(path).map_err(Error::io(path))?;
        let config: OpenClipConfig = serde_json::from_str(&text).map_err(|source| Error::Config { path: path.to_path_buf(), source })?;
        config.model_cfg.check(path)?;
        let size = config.model_cfg.vision_cfg.image_size;
        for (name, value) in &config.preprocess_cfg.other {
            let taken = match name.as_str() {
                "size" => *value == size || *value == Value::from(vec![size, size]),
                "mode" => value == "RGB",
                "interpolation" => value == "bicubic",
                "resize_mode" => value == "shortest",
                "fill_color" => true,
                _ => false,
            };
            if !taken {
                let (path, field) = (path.to_path_buf(), format!("preprocess_cfg.{name}"));
                return Err(Error::ConfigField { path, field, value: value.to_string() });
            }
        }
        Ok(config)
    }
}
