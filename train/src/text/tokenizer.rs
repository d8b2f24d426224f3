use instant_clip_tokenizer::Token;

/// CLIP's byte-pair encoding with the vocabulary of OpenAI's release.
pub struct Tokenizer {
    bpe: instant_clip_tokenizer::Tokenizer,
}

pub const VOCAB_SIZE: usize = 49408;

impl Default for Tokenizer {
    /// Takes some 50 ms: make one and share it.
    fn default() -> Self {
        Tokenizer { bpe: instant_clip_tokenizer::Tokenizer::new() }
    }
}

impl Tokenizer {
    /// Start token, the caption's tokens, end token; at most `context_length` in all, the end always kept.
    /// The caption is cleaned first.
    pub fn encode(&self, caption: &str, context_length: usize) -> Vec<u32> {
        let text = super::clean(caption);
        let mut tokens = vec![self.bpe.start_of_text()];
        self.bpe.encode(&text, &mut tokens);
        tokens.truncate(context_length - 1);
        tokens.push(self.bpe.end_of_text());
        tokens.into_iter().map(|token: Token| u32::from(token.to_u16())).collect()
    }
}
