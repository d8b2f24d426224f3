use instant_clip_tokenizer::Token;

/// CLIP's byte-pair encoding with the vocabulary of OpenAI's release.
pub struct Tokenizer {
    bpe: instant_clip_tokenizer::Tokenizer,
}

/// Bytes of a cleaned caption that are looked at.
const LONGEST: usize = 16 << 10;

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
        let mut text = super::clean(caption);
        // Byte pairs take the square of a word's length; what is cut would not be among the first tokens but of such words.
        text.truncate(text.floor_char_boundary(LONGEST));
        let mut tokens = vec![self.bpe.start_of_text()];
        self.bpe.encode(&text, &mut tokens);
        tokens.truncate(context_length - 1);
        tokens.push(self.bpe.end_of_text());
        tokens.into_iter().map(|token: Token| u32::from(token.to_u16())).collect()
    }
}
