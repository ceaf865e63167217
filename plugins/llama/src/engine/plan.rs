//! How much memory a model will take, from its header alone.

use super::gguf::Header;
use super::{CacheType, Config};
use backplane_plugin::{Error, Result};

/// Memory of a model once it is open.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Plan {
    /// Weights.
    pub weights: u64,
    /// Keys and values of all slots.
    pub cache: u64,
    /// Buffers of a step, and the vocabulary.
    pub scratch: u64,
    /// Tokens one request may take in all.
    pub context: u32,
}

impl Plan {
    /// All of it.
    pub fn total(&self) -> u64 {
        self.weights + self.cache + self.scratch
    }

    /// Plans for a file.
    ///
    /// Held by `tests/engine/files.rs` against what the process really takes. The embedding context, made with the first
    /// embedding, is not in it: it takes a slot's cache, and a row of logits for every token of a batch. Nor are the logits of a prompt that is
    /// reported (`echo` with `logprobs`): at most 32 MiB.
    ///
    /// # Errors
    /// `model_invalid` when the header lacks what every model has; `InvalidArgument` for a context the model was
    /// not trained for.
    pub fn new(header: &Header, config: &Config) -> Result<Self> {
        let architecture = header.architecture();
        let need = |key: &str| {
            header.of_architecture(key).ok_or_else(|| {
                Error::model_invalid(format!("the model file is not valid: it lacks `{architecture}.{key}`"))
            })
        };
        if architecture.is_empty() {
            return Err(Error::model_invalid("the model file is not valid: it lacks `general.architecture`"));
        }
        let layers = need("block_count")?;
        let width = need("embedding_length")?;
        if layers == 0 || layers > 4096 || width == 0 || width > 1 << 20 {
            return Err(Error::model_invalid(format!(
                "the model file is not valid: it claims {layers} layers of width {width}"
            )));
        }
        let context = context(header, config)?;
        // A model without attention (recurrent) has no cache that grows.
        let heads = header.of_architecture("attention.head_count").unwrap_or(0);
        let head = width.checked_div(heads).unwrap_or(0);
        let key = header.of_architecture("attention.key_length").unwrap_or(head);
        let value = header.of_architecture("attention.value_length").unwrap_or(head);
        // Beyond these the sums below would overflow.
        let wide = header.of_architecture("feed_forward_length").unwrap_or(0);
        for (what, n) in [
            ("attention.head_count", heads),
            ("attention.key_length", key),
            ("attention.value_length", value),
            ("feed_forward_length", wide),
        ] {
            if n > 1 << 20 {
                return Err(Error::model_invalid(format!(
                    "the model file is not valid: `{architecture}.{what}` is {n}"
                )));
            }
        }
        // llama.cpp ends the process where it divides by what is less than nothing, or by no number.
        for what in [
            "attention.layer_norm_rms_epsilon",
            "attention.layer_norm_epsilon",
            "attention.group_norm_epsilon",
        ] {
            let key = format!("{architecture}.{what}");
            if let Some(epsilon) = header.real(&key).filter(|epsilon| !(0.0..=1.0).contains(epsilon)) {
                return Err(Error::model_invalid(format!(
                    "the model file is not valid: `{key}` is {epsilon}"
                )));
            }
        }
        let kv_heads = header
            .per_layer(&format!("{architecture}.attention.head_count_kv"), layers)
            .unwrap_or_else(|| vec![heads; layers as usize]);
        let per_token: u64 =
            kv_heads.iter().take(layers as usize).map(|heads| heads.min(&(1 << 20)) * (key + value)).sum();
        let tokens = u64::from(context) * u64::from(config.slots);
        let (block, bytes) = config.cache_type.block();
        let vocabulary = header.vocabulary.max(header.of_architecture("vocab_size").unwrap_or(0));
        let batch = u64::from(config.batch);
        // The widest layer of a step, the attention mask, a row of logits for each slot. The vocabulary takes a few
        // hundred bytes an entry as text, hash map and merges.
        let inner = header.of_architecture("feed_forward_length").unwrap_or(4 * width);
        let slots = u64::from(config.slots);
        let scratch = 4 * batch * (3 * inner.max(width) + 6 * width)
            + 2 * batch * tokens
            + 8 * slots * vocabulary
            + 300 * vocabulary
            + (16 << 20);
        Ok(Self { weights: header.tensor_bytes, cache: per_token * tokens / block * bytes, scratch, context })
    }
}

/// Tokens one request may take: as configured, else 4096 or what the model was trained for, whichever is less.
fn context(header: &Header, config: &Config) -> Result<u32> {
    const USUAL: u32 = 4096;
    let trained =
        header.of_architecture("context_length").and_then(|n| u32::try_from(n).ok()).unwrap_or(USUAL);
    match config.context {
        Some(context) if context > trained => Err(Error::invalid(format!(
            "`context` is {context}, and the model was trained for {trained} tokens"
        ))
        .with_param("context")),
        Some(context) => Ok(context),
        None => Ok(trained.min(USUAL)),
    }
}

impl CacheType {
    /// Numbers in a block, bytes of a block.
    fn block(self) -> (u64, u64) {
        match self {
            Self::F16 => (1, 2),
            Self::Q8_0 => (32, 34),
        }
    }
}
