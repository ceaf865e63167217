//! What is said. Members have the names and meanings of `backplane.h`; numbers that name a plugin's objects are chosen by
//! the host, and mean nothing but within their worker.

use super::wire::{Data, Malformed, Out, Source, Wire, messages};

/// Text as it crosses the ABI: meant to be UTF-8, but nobody has looked.
pub type Text<'a> = &'a [u8];

messages! {
    /// `bp_error`.
    struct Failure<'a> {
        code: i32,
        sub: i32,
        retry_after_ms: u32,
        message: Text<'a>,
        reason: Text<'a>,
        details: Text<'a>,
    }

    /// `bp_tensor`. Where its pointers led nowhere there is nothing.
    struct Tensor<'a> {
        struct_size: u32,
        flags: u32,
        name: Text<'a>,
        dev_type: i32,
        dev_id: i32,
        code: u8,
        bits: u8,
        lanes: u16,
        ndim: i32,
        shape: Option<Vec<i64>>,
        strides: Option<Vec<i64>>,
        nbytes: u64,
        data: Option<Data<'a>>,
        /// It came with a buffer, which may be retained.
        buffer: bool,
    } holds agrees;

    /// `bp_request`.
    struct Row<'a> {
        struct_size: u32,
        flags: u32,
        id: u64,
        capability: Text<'a>,
        params: Text<'a>,
        tensors: Vec<Tensor<'a>>,
        request_id: Text<'a>,
        traceparent: Text<'a>,
        tenant: Text<'a>,
        deadline_ns: i64,
        cancelled: bool,
        priority: i32,
        capability_version: u32,
        /// Where in the memory of [`ToWorker::Credits`] it is read what was taken of the answer.
        credit: u32,
    }

    /// `bp_query`.
    struct Query<'a> {
        struct_size: u32,
        flags: u32,
        capability: Text<'a>,
        format: Text<'a>,
        model: Text<'a>,
        shapes: Vec<Tensor<'a>>,
        input_bytes: u64,
        slo_p99_us: u32,
        dev_type: i32,
        dev_id: i32,
        capability_version: u32,
    }

    /// `bp_bid`.
    struct Bid<'a> {
        score: u16,
        quality: u16,
        est_p50_us: u32,
        est_p99_us: u32,
        max_batch: u32,
        valid_ms: u32,
        load_ms: u32,
        bytes_dev: u64,
        bytes_host: u64,
        reason: i32,
        text: Text<'a>,
    }

    /// One figure of `bp.stats/1`.
    struct Figure<'a> {
        name: Text<'a>,
        value: f64,
    }

    /// How a call ended.
    struct Return<'a> {
        /// Frames on the main connection that were sent before it: what the plugin said before it returned has been
        /// heard when the call returns.
        after: u64,
        /// Nobody there reads the memory that the call lies in any more, if it was lent.
        back: bool,
        code: i32,
        error: Option<Failure<'a>>,
        value: Value<'a>,
    }
}

impl Tensor<'_> {
    /// Whether its lengths are those of what lies there: whoever reads it goes by them.
    fn agrees(&self) -> bool {
        let sides = |all: &Option<Vec<i64>>| {
            all.as_ref().is_none_or(|all| usize::try_from(self.ndim) == Ok(all.len()))
        };
        self.data.is_none_or(|data| self.nbytes == data.bytes.len() as u64)
            && sides(&self.shape)
            && sides(&self.strides)
    }
}

/// `bp_placement`.
#[derive(Clone, Copy, Debug, PartialEq)]
#[allow(missing_docs, reason = "members are those of backplane.h")]
pub struct Placement {
    pub struct_size: u32,
    pub flags: u32,
    pub ticket: u64,
    pub dev_type: i32,
    pub dev_id: i32,
    pub threads: u32,
    pub index: u32,
}

impl<'a> Wire<'a> for Placement {
    fn put(&self, out: &mut Out<'a>) {
        out.put(&self.struct_size).put(&self.flags).put(&self.ticket);
        out.put(&self.dev_type).put(&self.dev_id).put(&self.threads).put(&self.index);
    }
    fn take(from: &mut Source<'a>) -> Result<Self, Malformed> {
        Ok(Self {
            struct_size: Wire::take(from)?,
            flags: Wire::take(from)?,
            ticket: Wire::take(from)?,
            dev_type: Wire::take(from)?,
            dev_id: Wire::take(from)?,
            threads: Wire::take(from)?,
            index: Wire::take(from)?,
        })
    }
}

messages! {
    /// What the host calls in the plugin.
    enum Call<'a> {
        /// `bp_entry_v1`, with what the host's table says of itself.
        0 Enter { struct_size: u32, flags: u32, abi_major: u16, abi_minor: u16, name: Text<'a>, version: Text<'a>, compute: bool, call: bool, license: bool, }
        1 Init { config: Text<'a>, }
        2 Bid { query: Query<'a>, out_size: u32, }
        3 Open { model: u64, json: Text<'a>, }
        4 New { model: u64, instance: u64, placement: Placement, }
        /// `look`: the lane may look for the next call for a moment before it sleeps.
        5 Submit { instance: u64, rows: Vec<Row<'a>>, look: bool, }
        6 Health { instance: u64, }
        7 Quiesce { instance: u64, deadline_ns: i64, }
        8 Destroy { instance: u64, }
        9 Close { model: u64, }
        10 Count { model: u64, capability: Text<'a>, params: Text<'a>, }
        11 Stats { model: u64, }
        12 Shutdown {}
    }

    /// What a call gives beside its code.
    enum Value<'a> {
        0 Nothing {}
        /// `bp_plugin`. Bits of `functions` say which are there, in the order of the header.
        1 Plugin { struct_size: u32, flags: u32, minor_built: u16, minor_min: u16, id: Text<'a>, version: Text<'a>, functions: u8, }
        2 Bid { bid: Bid<'a>, }
        /// `bp_model`. Bits of `functions`: those of the table, then `bp.tokens/1` and `bp.stats/1`.
        3 Model { struct_size: u32, flags: u32, exec_class: i32, max_inflight: u32, max_batch: u32, cancel_grace_ms: u32, describe: Text<'a>, functions: u8, }
        /// `bp_instance`.
        4 Instance { struct_size: u32, flags: u32, functions: u8, }
        5 State { state: i32, }
        6 Tokens { tokens: u64, }
        7 Figures { figures: Vec<Figure<'a>>, }
    }

    /// What the host says on the main connection.
    enum ToWorker<'a> {
        /// The first word: what to load, and how it is to be confined. Of a library that was verified the sealed copy
        /// comes with it as a descriptor, and `library` says where it came from.
        0 Start { protocol: u32, library: Text<'a>, confine: Confine<'a>, }
        /// A lane: its descriptor comes with it.
        1 Lane {}
        2 Cancel { instance: u64, request: u64, }
        /// Memory in which the host counts what it took of each answer: its descriptor comes with it, before any lane.
        3 Credits {}
        4 Ping { number: u64, }
        /// To an `Ask`.
        5 Answer { ask: u64, code: i32, value: u64, bytes: Text<'a>, }
        6 CallChunk { call: u64, json: Text<'a>, tensors: Vec<Tensor<'a>>, }
        7 CallDone { call: u64, error: Option<Failure<'a>>, usage: Text<'a>, confidence: f64, }
        /// Memory that it was lent and said nobody reads: it is not lent again.
        8 Forget { arena: u64, }
    }

    /// What a worker says on the main connection.
    enum ToHost<'a> {
        /// The answer to `Start`: the library is mapped, or why not.
        0 Ready { protocol: u32, abi_minor: u16, problem: Option<Text<'a>>, }
        1 Pong { number: u64, }
        2 Push { request: u64, json: Text<'a>, tensors: Vec<Tensor<'a>>, }
        3 Finish { request: u64, error: Option<Failure<'a>>, usage: Text<'a>, confidence: f64, }
        4 Log { level: i32, message: Text<'a>, fields: Text<'a>, }
        5 Acquire { ask: u64, ticket: u64, want: u32, deadline_ns: i64, }
        6 Release { ticket: u64, granted: u32, }
        7 CallStart { ask: u64, call: u64, parent: u64, capability: Text<'a>, model: Text<'a>, params: Text<'a>, tensors: Vec<Tensor<'a>>, deadline_ns: i64, }
        8 CallCancel { call: u64, }
        /// `bp.license/1`: the state as value and the revision as bytes; a feature; the signed bytes, or the id.
        9 LicenseState { ask: u64, }
        10 LicenseFeature { ask: u64, tenant: Text<'a>, name: Text<'a>, }
        11 LicenseBytes { ask: u64, install_id: bool, }
    }

    /// How a worker is confined.
    enum Confine<'a> {
        /// Not at all: to see that it is the sandbox which stops a case.
        0 Nothing {}
        /// To this. `read`: files and folders that may be read, `write`: and written; `memory`: bytes of its own, 0 for no
        /// limit; `network`: whether it may reach others by it, `ports`: those TCP ports of theirs alone; `gpu`: whether it
        /// may use the machine's GPUs.
        1 Sandbox { read: Vec<Text<'a>>, write: Vec<Text<'a>>, memory: u64, network: bool, ports: Vec<u16>, gpu: bool, }
    }
}
