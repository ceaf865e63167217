//! A model in memory: what its running copies share.

use super::embed::{EmbedJob, Pooling, Shape};
use super::far;
use super::gguf::Header;
use super::job::Terms;
use super::plan::Plan;
use super::prompt::Prompter;
use super::vocabulary::Vocabulary;
use super::{Config, backend};
use backplane_plugin::payload::{chat, complete, embed};
use backplane_plugin::{Code, Error, Result};
use llama_cpp_2::llama_backend::LlamaBackend;
use llama_cpp_2::model::LlamaModel;
use llama_cpp_2::model::params::LlamaModelParams;
use std::path::Path;
use std::sync::{Arc, OnceLock};

/// An opened model. From any thread.
pub struct Loaded {
    pub(super) backend: &'static LlamaBackend,
    pub(super) model: Arc<LlamaModel>,
    pub(super) prompter: Prompter,
    pub(super) config: Config,
    pub(super) plan: Plan,
    pub(super) shape: Shape,
    kind: Kind,
    /// Made with the first grammar.
    vocabulary: OnceLock<Arc<Vocabulary>>,
}

/// What a model can do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// Decoder-only: generates and embeds.
    Decoder,
    /// Encoder-only: embeds.
    Encoder,
}

impl Loaded {
    /// Opens the model in the file at `path`. Blocks while it is loaded.
    ///
    /// # Errors
    /// `model_invalid` for a bad file; `InvalidArgument` for a bad configuration; `FailedPrecondition` when this
    /// machine lacks what was asked for.
    pub fn open(path: &Path, config: Config) -> Result<Self> {
        config.check()?;
        let header = Header::read(path)?;
        let plan = Plan::new(&header, &config)?;
        let (kind, shape) = kind_and_shape(&header, plan.context)?;
        let backend = backend::get()?;
        if config.gpu_layers > 0 && !backend.supports_gpu_offload() {
            let what = "`gpu_layers` asks for a GPU, and this build of the llama plugin has no GPU support";
            return Err(Error::new(Code::FailedPrecondition, what).with_param("gpu_layers"));
        }
        let params =
            LlamaModelParams::default().with_n_gpu_layers(config.gpu_layers).with_use_mmap(config.memory_map);
        let model = Arc::new(backend::load(backend, path, &params)?);
        let prompter = Prompter::new(model.clone(), plan.context)?;
        Ok(Self { backend, model, prompter, config, plan, shape, kind, vocabulary: OnceLock::new() })
    }

    /// What its tokens stand for.
    pub(super) fn vocabulary(&self) -> Arc<Vocabulary> {
        self.vocabulary.get_or_init(|| Arc::new(Vocabulary::of(&self.model))).clone()
    }

    /// Requests that may be open at once in each running copy.
    pub fn max_inflight(&self) -> u32 {
        self.config.slots
    }

    /// The memory it was planned to take.
    pub fn plan(&self) -> Plan {
        self.plan
    }

    /// Length of its vectors.
    pub fn dimensions(&self) -> u32 {
        u32::try_from(self.model.n_embd_out()).unwrap_or(0)
    }

    /// Whether it can `chat`.
    pub fn can_chat(&self) -> bool {
        self.can_complete() && self.prompter.has_template()
    }

    /// Whether it can `complete`.
    pub fn can_complete(&self) -> bool {
        self.kind == Kind::Decoder
    }

    /// Prompt tokens of a conversation.
    ///
    /// # Errors
    /// As the request would fail.
    pub fn count_chat(&self, params: &chat::Params) -> Result<u64> {
        Ok(self.prompt_of_chat(params)?.len() as u64)
    }

    /// The tokens that a conversation becomes.
    ///
    /// # Errors
    /// As the request would fail.
    pub fn prompt_of_chat(&self, params: &chat::Params) -> Result<Vec<i32>> {
        self.prompter.chat_any_length(params)
    }

    /// Prompt tokens of a completion.
    ///
    /// # Errors
    /// As the request would fail.
    pub fn count_complete(&self, params: &complete::Params) -> Result<u64> {
        Ok(self.prompter.complete_any_length(params)?.tokens.len() as u64)
    }

    /// Tokens of the inputs.
    ///
    /// # Errors
    /// As the request would fail.
    pub fn count_embed(&self, params: &embed::Params) -> Result<u64> {
        Ok(self.embed_inputs(params)?.iter().map(|input| input.len() as u64).sum())
    }

    fn embed_inputs(&self, params: &embed::Params) -> Result<Vec<Vec<i32>>> {
        params
            .input
            .iter()
            .enumerate()
            .map(|(i, input)| match input {
                embed::Input::Text(text) => Ok(self.prompter.text(text)),
                embed::Input::Tokens(tokens) => self.prompter.check_tokens(tokens, &format!("input[{i}]")),
            })
            .collect()
    }

    /// A checked request for vectors.
    pub(super) fn prepare_embed(&self, params: &embed::Params, terms: Terms) -> Result<EmbedJob> {
        let refuse =
            |param: &str, what: String| Err(Error::invalid(format!("`{param}` {what}")).with_param(param));
        if params.input.is_empty() {
            return refuse("input", "is empty".into());
        }
        let width = self.dimensions();
        if let Some(n) = params.dimensions.filter(|n| !(1..=width).contains(n)) {
            return refuse("dimensions", format!("is {n}; this model's vectors have {width}"));
        }
        let mut inputs = self.embed_inputs(params)?;
        for (i, input) in inputs.iter_mut().enumerate() {
            let most = self.shape.context as usize;
            if input.is_empty() {
                return refuse(&format!("input[{i}]"), "has no tokens".into());
            }
            if input.len() > most && params.truncate {
                input.truncate(most);
            }
            // Of one that is far too long only a part was counted.
            if input.len() > most
                && let embed::Input::Text(text) = &params.input[i]
                && far::PIECE < text.len()
            {
                return Err(far::far_too_long(most, self.shape.context).with_param(format!("input[{i}]")));
            }
            if input.len() > most {
                let n = input.len();
                return Err(Error::new(
                    Code::OutOfRange,
                    format!("`input[{i}]` has {n} tokens and the model takes {most}: {} too many", n - most),
                )
                .with_reason("context_length_exceeded")
                .with_detail("n_prompt", n)
                .with_detail("n_ctx", most)
                .with_detail("n_over", n - most));
            }
        }
        Ok(EmbedJob { inputs, dimensions: params.dimensions.map(|n| n as usize), deadline: terms.deadline })
    }
}

impl std::fmt::Debug for Loaded {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Loaded").field("plan", &self.plan).field("kind", &self.kind).finish_non_exhaustive()
    }
}

/// What the model can do, and how it embeds.
fn kind_and_shape(header: &Header, context: u32) -> Result<(Kind, Shape)> {
    let architecture = header.architecture();
    if architecture.starts_with("t5") && architecture != "t5encoder" {
        let what = format!("architecture `{architecture}` is an encoder with a decoder, which is not served");
        return Err(Error::new(Code::Unimplemented, what));
    }
    let causal = header.flag(&format!("{architecture}.attention.causal")).unwrap_or(true);
    let encoder = !causal || architecture.contains("bert") || architecture.ends_with("encoder");
    // `enum llama_pooling_type`; models without one were not made to embed, and the mean serves them best.
    let pooling = match header.of_architecture("pooling_type") {
        Some(2) => Pooling::First,
        Some(3) => Pooling::Last,
        _ => Pooling::Mean,
    };
    let kind = if encoder { Kind::Encoder } else { Kind::Decoder };
    Ok((kind, Shape { context, causal: !encoder, pooling }))
}
