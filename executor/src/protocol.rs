//! What a client and its node say to each other, and a node and its workers: MessagePack maps (rmp-serde, named fields), one a frame,
//! beside raw segments (`ks_transport::segments`): segment 0 is the header, the others are payloads that the header refers to.
//! The same on the node's unix socket (control socket), on a QUIC stream of kind SESSION, and on a worker's socket pair.
//! The Python package speaks it too: field and variant names here are the contract.
use serde::{Deserialize, Serialize};
use serde_bytes::ByteBuf;

/// Version of this protocol; said in `Hello`, a different one is refused with both numbers.
pub const VERSION: u32 = 1;
/// A part up to this size travels inline (Redis included); a larger one is a blob (a file in the tree's hidden part).
pub const INLINE_BYTES: usize = 64 * 1024;

/// A job's name: 32 hex digits, random, chosen by the client, so that a submission sent twice is one job.
pub type JobId = String;

/// Serialized data: the pickle first, then its out-of-band buffers (pickle protocol 5).
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Payload {
    pub parts: Vec<Part>,
}

/// One part of a payload.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Part {
    Inline(ByteBuf),
    /// A segment of the same frame, by index (1 and up).
    Segment(u32),
    /// A file in the hidden part of the tree, by BLAKE3 hash; `path` is set where the receiver can open (and memory-map) it.
    Blob {
        hash: ByteBuf,
        size: u64,
        path: Option<ByteBuf>,
    },
}

/// Which function.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum FunctionRef {
    /// By the BLAKE3 hash (32 bytes) of its serialized form.
    Hash(ByteBuf),
    /// `module:qualified.name` of a registered function, or a built-in of `kitchensink.builtins`.
    Name(String),
}

/// A function's serialized form, sent once per connection.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct FunctionCode {
    pub hash: ByteBuf,
    pub name: String,
    pub code: Part,
}

/// One call, as the client wants it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Call {
    pub job: JobId,
    /// For people: the function's qualified name.
    pub name: String,
    pub function: FunctionRef,
    /// How args and result are serialized: `cloudpickle`, `pickle`, `json`, ...
    pub format: String,
    /// Of `(args, kwargs)`.
    pub args: Payload,
    /// Paths under the caller's mount point found in the arguments: absolute, as the caller wrote them.
    #[serde(default)]
    pub paths: Vec<ByteBuf>,
    /// `_locality` hints: like `paths`, where no argument names the file.
    #[serde(default)]
    pub locality: Vec<ByteBuf>,
    /// The caller's mount point; where the executing node's differs, paths are rewritten by the worker.
    pub mountpoint: Option<ByteBuf>,
    #[serde(default = "default_queue")]
    pub queue: String,
    /// Must run on the node of this name.
    #[serde(default)]
    pub node: Option<String>,
    #[serde(default)]
    pub timeout_ms: Option<u64>,
    /// How often it may be run again after its worker or node died. 0: at most once.
    #[serde(default)]
    pub retries: u32,
    #[serde(default)]
    pub priority: i32,
    /// Bytes; `None`: the node's default.
    #[serde(default)]
    pub data_threshold: Option<u64>,
    /// `_no_route_data`: place it anywhere.
    #[serde(default)]
    pub no_route_data: bool,
    /// Whether output and log lines are sent back as they happen.
    #[serde(default = "yes")]
    pub intermediate_results: bool,
    #[serde(default)]
    pub python: Option<String>,
}
fn default_queue() -> String {
    "default".into()
}
fn yes() -> bool {
    true
}

/// Client to node. `request` comes back in the `Reply`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Request {
    pub request: u64,
    pub body: Ask,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum Ask {
    /// First on every connection.
    Hello {
        version: u32,
        program: String,
    },
    /// Enqueues; answered by `Accepted` when every job is recorded. Updates of these jobs follow on this connection.
    Submit {
        functions: Vec<FunctionCode>,
        calls: Vec<Call>,
    },
    /// Wants the updates of jobs that another connection submitted (their end, at once if they have ended).
    Attach {
        jobs: Vec<JobId>,
    },
    /// Answered by `Cancelled`.
    Cancel {
        jobs: Vec<JobId>,
        all: bool,
    },
    Nodes,
    Status,
    Where {
        paths: Vec<ByteBuf>,
    },
    /// Brings files to this node; `Progress` updates, then `Done`.
    Fetch {
        paths: Vec<ByteBuf>,
    },
    Ping,
    /// Ends the node in order (what `ks umount` says).
    Shutdown,
}

/// Node to client.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum Tell {
    Reply {
        request: u64,
        answer: Answer,
    },
    /// Something happened to a job.
    Update {
        job: JobId,
        update: Update,
    },
    Progress {
        request: u64,
        path: ByteBuf,
        have: u64,
        size: u64,
    },
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum Answer {
    Hello {
        version: u32,
        node: String,
        node_id: String,
        mountpoint: ByteBuf,
        datadir: ByteBuf,
        program: String,
    },
    Accepted,
    /// Which of them were still going.
    Cancelled {
        jobs: Vec<JobId>,
    },
    Nodes(Vec<serde_json::Value>),
    Status(serde_json::Value),
    Where(Vec<serde_json::Value>),
    Done,
    Pong {
        node: String,
    },
    /// The request as a whole failed; `kind` is the Python exception's name.
    Failed {
        kind: String,
        message: String,
    },
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum Update {
    Started {
        node: String,
        pid: u32,
    },
    /// Bytes that the call (or a process of its) wrote to descriptor 1 or 2, in order.
    Output {
        node: String,
        stream: u8,
        data: ByteBuf,
    },
    /// One record of Python's logging.
    Log {
        node: String,
        level: i32,
        logger: String,
        message: String,
        time: f64,
    },
    Ended {
        outcome: Outcome,
        report: Report,
    },
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum Outcome {
    Returned(Payload),
    /// The user's code raised. `exception` is the pickled exception, where it pickles.
    Raised {
        exception: Option<Payload>,
        type_name: String,
        message: String,
        traceback: String,
    },
    /// Something of ours: `kind` is the Python exception's name (WorkerCrashed, JobCancelled, JobTimeout, NodeLost, NotPlaceable, NotSerializable, ...).
    Failed {
        kind: String,
        message: String,
        signal: Option<i32>,
        exit_code: Option<i32>,
        stack: Option<String>,
    },
}

/// What a call used and where it ran.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Report {
    pub node: String,
    pub pid: u32,
    /// Why it ran there, for people.
    pub why: String,
    /// Bytes of its data that each node would have had to fetch when it was placed.
    pub costs: Vec<(String, u64)>,
    pub queued_us: u64,
    pub run_us: u64,
    pub cpu_us: u64,
    pub bytes_local: u64,
    pub bytes_fetched: u64,
    /// Tree paths it opened.
    pub files: Vec<ByteBuf>,
}

/// Node to worker.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum ToWorker {
    /// Run it; `code` comes when this worker has not had the function yet.
    Run {
        job: JobId,
        name: String,
        function: FunctionRef,
        code: Option<Part>,
        format: String,
        args: Payload,
        mountpoint_from: Option<ByteBuf>,
        mountpoint_to: ByteBuf,
        intermediate_results: bool,
    },
    /// Finish and exit.
    Exit,
}

/// Worker to node. What is printed comes through the pipes at its descriptors 1 and 2, not here.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum FromWorker {
    Ready {
        pid: u32,
        python: String,
        package: String,
    },
    Log {
        job: JobId,
        level: i32,
        logger: String,
        message: String,
        time: f64,
    },
    /// Sent after stdout and stderr were flushed.
    Ended {
        job: JobId,
        outcome: Outcome,
        run_us: u64,
        cpu_us: u64,
    },
}
