//! CLIP: tokenizer, image pipeline, loader, model, recipe and checkpoints.
//! Sees no SQL: it is given a `storage::Subset`'s samples.

pub mod backend;
mod checkpoint;
mod config;
pub mod embed;
mod encoder;
mod error;
pub mod image;
mod loader;
pub mod model;
pub mod parameters;
mod recipe;
mod run;
pub mod step;
mod tokenizer;

pub use checkpoint::{CONFIG_FILE, Checkpoint, WEIGHTS_FILE};
pub use config::{ModelConfig, OpenClipConfig, PreprocessConfig, TextConfig, VisionConfig};
pub use encoder::{Encoder, normalize_rows};
pub use error::{Error, Result};
pub use recipe::{Recipe, SCALES};
pub use run::{Plan, RUN_FILE, Run, StepReport, train};
pub use tokenizer::Tokenizer;
