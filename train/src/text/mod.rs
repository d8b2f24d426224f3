//! From a caption to CLIP's tokens, as open_clip makes them.

mod charmap;
mod clean;
mod mojibake;
mod tokenizer;

pub use clean::clean;
pub use tokenizer::{Tokenizer, VOCAB_SIZE};
