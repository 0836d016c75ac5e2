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
    /// In this order.
    pub parts: Vec<Part>,
}

/// One part of a payload.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Part {
    /// The bytes themselves.
    Inline(ByteBuf),
    /// A segment of the same frame, by index (1 and up).
    Segment(u32),
    /// A file in the hidden part of the tree, by BLAKE3 hash; `path` is set where the receiver can open (and memory-map) it.
    Blob {
        /// 32 bytes.
        hash: ByteBuf,
        /// Bytes.
        size: u64,
        /// Absolute.
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
    /// BLAKE3 of the code, 32 bytes.
    pub hash: ByteBuf,
    /// For people: its qualified name.
    pub name: String,
    /// The serialized form.
    pub code: Part,
}

/// One call, as the client wants it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Call {
    /// Its name.
    pub job: JobId,
    /// For people: the function's qualified name.
    pub name: String,
    /// What is called.
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
    /// `_queue_name`.
    #[serde(default = "default_queue")]
    pub queue: String,
    /// Must run on the node of this name.
    #[serde(default)]
    pub node: Option<String>,
    /// How long it may run.
    #[serde(default)]
    pub timeout_ms: Option<u64>,
    /// How often it may be run again after its worker or node died. 0: at most once.
    #[serde(default)]
    pub retries: u32,
    /// Higher first.
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
    /// All of its output must arrive: it is slowed down where that cannot be passed on, in place of being cut.
    #[serde(default)]
    pub paced: bool,
    /// The interpreter's name; `None`: the default one.
    #[serde(default)]
    pub python: Option<String>,
    /// Short arguments of a call that names no file, by position ("0") or keyword, as `str()` writes them: earlier calls may have shown
    /// how paths are made of them.
    #[serde(default)]
    pub texts: Vec<(String, ByteBuf)>,
    /// Values that are kept on nodes, which its arguments refer to.
    #[serde(default)]
    pub kept: Vec<KeptValue>,
    /// `_keep`: its result stays where it is made, as this.
    #[serde(default)]
    pub keep: Option<KeepAs>,
    /// The call that makes it: where that one is stopped or lost, this one is cancelled.
    #[serde(default)]
    pub outer: Option<JobId>,
}

/// A kept value that a call uses: the client says which, the accepting node which file it is, the executing one where.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeptValue {
    /// 32 hex digits.
    pub id: String,
    /// BLAKE3 of its file, 32 bytes.
    #[serde(default)]
    pub hash: ByteBuf,
    /// Bytes of its file.
    #[serde(default)]
    pub size: u64,
    /// Its file on the node that says so.
    #[serde(default)]
    pub path: Option<ByteBuf>,
}

/// As what a value is kept.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeepAs {
    /// 32 hex digits.
    pub id: String,
    /// What it belongs to: a pool; may be empty.
    #[serde(default)]
    pub group: String,
    /// For people: its key.
    #[serde(default)]
    pub name: String,
    /// It goes only when it is deleted; else also when it was not used for as long as results are kept.
    #[serde(default)]
    pub forever: bool,
}

/// The file of a value that is to be kept, written where the node keeps such.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeptFile {
    /// BLAKE3, 32 bytes.
    pub hash: ByteBuf,
    /// Bytes.
    pub size: u64,
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
    /// Any number.
    pub request: u64,
    /// What is asked.
    pub body: Ask,
}

/// The stream of an `Output` that is a note of ours on the call's output: something of it is missing.
pub const NOTE_STREAM: u8 = 0;

/// What a client asks.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum Ask {
    /// First on every connection.
    Hello {
        /// Of the protocol.
        version: u32,
        /// For people: who asks.
        program: String,
    },
    /// Enqueues; answered by `Accepted` when every job is recorded. Updates of these jobs follow on this connection.
    Submit {
        /// Those that this connection has not sent yet.
        functions: Vec<FunctionCode>,
        /// In this order.
        calls: Vec<Call>,
    },
    /// Wants the updates of jobs that another connection submitted (their end, at once if they have ended).
    Attach {
        /// Which.
        jobs: Vec<JobId>,
    },
    /// These jobs end with this connection: they are cancelled when it closes before them. Not answered.
    Tie {
        /// Which.
        jobs: Vec<JobId>,
    },
    /// Answered by `Cancelled`.
    Cancel {
        /// Which.
        jobs: Vec<JobId>,
        /// Every job of the cluster.
        all: bool,
    },
    /// Answered by `Jobs`: those that have not ended.
    Jobs {
        /// At most so many, the oldest first.
        limit: u32,
    },
    /// Answered by `Logs`.
    Logs {
        /// Which job.
        job: JobId,
    },
    /// Answered by `Nodes`: a map each, with name, id, address, alive, workers, queues, mountpoint, datadir, free_bytes, total_bytes, version, read_only.
    Nodes,
    /// Takes a node that is gone for good out of the cluster. Answered by `Report`: a row that says what came of it (node, done, copies,
    /// homes, lost), then one for each file of which it has the only copy.
    ForgetNode {
        /// Its name or id.
        node: String,
        /// Also where it has the only copy of files.
        force: bool,
    },
    /// Answered by `Status`.
    Status,
    /// Whether the catalog's records can be read; answered by `Status`, after as long as reading them takes.
    Records,
    /// Answered by `Where`.
    Where {
        /// Under this node's mount point, or relative to the tree's root.
        paths: Vec<ByteBuf>,
        /// With the MD5 of files, which is computed where nobody has asked for it yet.
        #[serde(default)]
        md5: bool,
    },
    /// Brings files to this node; `Progress` updates, then `Done`.
    Fetch {
        /// As in `Where`; a directory stands for the files below it.
        paths: Vec<ByteBuf>,
    },
    /// Gives up this node's copies, never the last; answered by `Report`.
    Drop {
        /// As in `Fetch`.
        paths: Vec<ByteBuf>,
    },
    /// Keeps this node's copies whatever else must go, or lets them go again; answered by `Report`.
    Pin {
        /// As in `Fetch`.
        paths: Vec<ByteBuf>,
        /// `false`: unpins.
        pinned: bool,
    },
    /// Brings files to other nodes; `Progress` updates, then `Report`.
    Push {
        /// As in `Fetch`.
        paths: Vec<ByteBuf>,
        /// Node names; none: all nodes that keep files.
        to: Vec<String>,
    },
    /// Keeps so many copies of files, or of the files below directories, from now on, and makes those that lack; answered by `Report`.
    Replicate {
        /// As in `Fetch`.
        paths: Vec<ByteBuf>,
        /// How many.
        count: usize,
    },
    /// Re-reads every copy and mends damaged ones; answered by `Report`.
    Verify {
        /// As in `Fetch`.
        paths: Vec<ByteBuf>,
    },
    /// How far the last rebuilding of the tree is; answered by `Report` with one row.
    Recover {
        /// Begins one first, where none is under way.
        begin: bool,
    },
    /// Keeps values whose files the client (on this machine) has written where the node keeps such; answered by `Done`.
    Keep {
        /// As what, and which file.
        values: Vec<(KeepAs, KeptFile)>,
    },
    /// Brings kept values to this node; answered by `Kept`, with paths.
    Kept {
        /// Which.
        ids: Vec<String>,
    },
    /// Answered by `KeptGroup`: the values of a group.
    KeptGroup {
        /// Which.
        group: String,
    },
    /// These values are not needed any more; answered by `Forgotten`.
    Forget {
        /// Which.
        #[serde(default)]
        ids: Vec<String>,
        /// And all of these groups.
        #[serde(default)]
        groups: Vec<String>,
    },
    /// A call that runs at this node waits for calls of its own from now on, or goes on: meanwhile its worker's place is another's.
    /// Answered by `Done`, also where no such call runs here, or fails as `NestedTooDeep`.
    Nested {
        /// Which.
        job: JobId,
        /// `false`: it goes on.
        waits: bool,
    },
    /// Answered by `Pong`.
    Ping,
    /// Ends the node in order (what `ks umount` says).
    Shutdown,
}

/// Node to client.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum Tell {
    /// The answer to a request.
    Reply {
        /// Its number.
        request: u64,
        /// The answer.
        answer: Answer,
    },
    /// Something happened to a job.
    Update {
        /// Which.
        job: JobId,
        /// What.
        update: Update,
    },
    /// How far a fetch has come.
    Progress {
        /// The request's number.
        request: u64,
        /// The file.
        path: ByteBuf,
        /// Bytes that are here.
        have: u64,
        /// Bytes in all.
        size: u64,
    },
}

/// Answers.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum Answer {
    /// The node introduces itself.
    Hello {
        /// Of the protocol.
        version: u32,
        /// Its name.
        node: String,
        /// Its identity: 16 hex digits.
        node_id: String,
        /// Where it mounts the tree.
        mountpoint: ByteBuf,
        /// Its own files.
        datadir: ByteBuf,
        /// For people: program and version.
        program: String,
        /// Addresses (`host:port`) of the other nodes that live: where a client goes on when this one dies.
        #[serde(default)]
        peers: Vec<String>,
        /// Where clients on this machine write values that are to be kept in memory.
        #[serde(default)]
        memory: Option<ByteBuf>,
    },
    /// Every job is recorded, or has ended with the reason why not.
    Accepted,
    /// Which of them were still going.
    Cancelled {
        /// Their names.
        jobs: Vec<JobId>,
    },
    /// Jobs that have not ended.
    Jobs {
        /// How many there are.
        total: u64,
        /// A map each, with job, function, state, queue, node, priority, retries_left, age_ms, why, costs.
        jobs: Vec<serde_json::Value>,
    },
    /// What a job wrote to its standard output and error: the end of it, as far as it is kept.
    Logs {
        /// How it ended, for people.
        ended: String,
        /// Descriptor (1 or 2) and bytes, in order.
        pieces: Vec<(u8, ByteBuf)>,
        /// Bytes before them that are not kept.
        omitted_bytes: u64,
    },
    /// The nodes.
    Nodes(Vec<serde_json::Value>),
    /// What runs.
    Status(serde_json::Value),
    /// Who holds each of the paths (`ks_fs::filesystem::Where`).
    Where(Vec<serde_json::Value>),
    /// A map for each file (and node): path, ok, error, and what the question was about.
    Report(Vec<serde_json::Value>),
    /// Kept values, which are here now.
    Kept(Vec<KeptValue>),
    /// A map each, with id, name, size and nodes.
    KeptGroup(Vec<serde_json::Value>),
    /// So many values were there.
    Forgotten {
        /// How many.
        count: u64,
    },
    /// It is done.
    Done,
    /// The node is there.
    Pong {
        /// Its name.
        node: String,
    },
    /// The request as a whole failed.
    Failed {
        /// The Python exception's name.
        kind: String,
        /// What went wrong.
        message: String,
    },
}

/// What happens to a job.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum Update {
    /// A worker runs it. Left out where the end follows at once (its report says where it ran).
    Started {
        /// The node's name.
        node: String,
        /// The worker's process.
        pid: u32,
    },
    /// Bytes that the call (or a process of its) wrote to descriptor 1 or 2, in order.
    Output {
        /// The node's name.
        node: String,
        /// 1 or 2.
        stream: u8,
        /// The bytes.
        data: ByteBuf,
    },
    /// One record of Python's logging.
    Log {
        /// The node's name.
        node: String,
        /// As Python numbers them.
        level: i32,
        /// The logger's name.
        logger: String,
        /// Its text, with the traceback where there is one.
        message: String,
        /// Seconds since 1970.
        time: f64,
    },
    /// It is over; nothing follows.
    Ended {
        /// What came of it.
        outcome: Outcome,
        /// What it used.
        report: Report,
    },
}

/// How a call ended.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum Outcome {
    /// The function's value.
    Returned(Payload),
    /// The user's code raised. `exception` is the pickled exception, where it pickles.
    Raised {
        /// The pickled exception.
        exception: Option<Payload>,
        /// Its class's name.
        type_name: String,
        /// Its text.
        message: String,
        /// As Python prints it.
        traceback: String,
    },
    /// Something of ours: `kind` is the Python exception's name (WorkerCrashed, JobCancelled, JobTimeout, NodeLost, NotPlaceable, NotSerializable, ...).
    Failed {
        /// The Python exception's name.
        kind: String,
        /// What went wrong.
        message: String,
        /// What killed the worker.
        signal: Option<i32>,
        /// What the worker exited with.
        exit_code: Option<i32>,
        /// The last Python stack of a worker that died.
        stack: Option<String>,
    },
}

/// What a call used and where it ran.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Report {
    /// The node's name.
    pub node: String,
    /// The worker's process; 0: it never began.
    pub pid: u32,
    /// Why it ran there, for people.
    pub why: String,
    /// Bytes of its data that each node would have had to fetch when it was placed, the least first; of many nodes the first 32.
    pub costs: Vec<(String, u64)>,
    /// From its acceptance to its start.
    pub queued_us: u64,
    /// How long its function ran; where it did not come to its end, how long its worker had it.
    pub run_us: u64,
    /// Processor time that its function took.
    pub cpu_us: u64,
    /// Bytes of the files it opened that were on its node by then.
    pub bytes_local: u64,
    /// Bytes that were fetched from other nodes for it.
    pub bytes_fetched: u64,
    /// Tree paths it opened.
    pub files: Vec<ByteBuf>,
    /// What else its time went to.
    #[serde(default)]
    pub phases: Phases,
}

/// What a call's time went to beside running: microseconds. On the wire a list, in this order.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "[u64; 5]", into = "[u64; 5]")]
pub struct Phases {
    /// From the executing node's asking for it to its having it; part of `queued_us`.
    pub claiming_us: u64,
    /// Until its function, its large arguments and its kept values were there; part of `queued_us`.
    pub bringing_us: u64,
    /// In its worker, before the function ran.
    pub unpickling_us: u64,
    /// Reads of it, or of its processes, that waited for files of other nodes: how long there was at least one. Part of `run_us`.
    pub waiting_us: u64,
    /// In its worker, after the function had run.
    pub pickling_us: u64,
}

impl From<[u64; 5]> for Phases {
    fn from(list: [u64; 5]) -> Self {
        let [
            claiming_us,
            bringing_us,
            unpickling_us,
            waiting_us,
            pickling_us,
        ] = list;
        Self {
            claiming_us,
            bringing_us,
            unpickling_us,
            waiting_us,
            pickling_us,
        }
    }
}

impl From<Phases> for [u64; 5] {
    fn from(phases: Phases) -> Self {
        [
            phases.claiming_us,
            phases.bringing_us,
            phases.unpickling_us,
            phases.waiting_us,
            phases.pickling_us,
        ]
    }
}

/// Node to worker.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[allow(clippy::large_enum_variant)] // nearly all are `Run`
pub enum ToWorker {
    /// Run it; `code` comes when this worker has not had the function yet.
    Run {
        /// Its name.
        job: JobId,
        /// The function's, for people.
        name: String,
        /// What is called.
        function: FunctionRef,
        /// The function's serialized form.
        code: Option<Part>,
        /// As in `Call`.
        format: String,
        /// Of `(args, kwargs)`.
        args: Payload,
        /// The caller's mount point.
        mountpoint_from: Option<ByteBuf>,
        /// This node's.
        mountpoint_to: ByteBuf,
        /// Whether log records are wanted.
        intermediate_results: bool,
        /// The kept values that its arguments refer to, with their paths.
        #[serde(default)]
        kept: Vec<KeptValue>,
        /// Its result stays here, as this.
        #[serde(default)]
        keep: Option<KeepAs>,
        /// As in `Call`: the calls that it makes go first.
        #[serde(default)]
        priority: i32,
    },
    /// A kept value was removed: what maps files that are gone is to be let go.
    Forget,
    /// Finish and exit.
    Exit,
}

/// Worker to node. What is printed comes through the pipes at its descriptors 1 and 2, not here.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum FromWorker {
    /// It may be given calls.
    Ready {
        /// Its process.
        pid: u32,
        /// Python's version.
        python: String,
        /// The package's version.
        package: String,
    },
    /// As `Update::Log`.
    Log {
        /// The call that logged.
        job: JobId,
        /// As Python numbers them.
        level: i32,
        /// The logger's name.
        logger: String,
        /// Its text.
        message: String,
        /// Seconds since 1970.
        time: f64,
    },
    /// Sent after stdout and stderr were flushed.
    Ended {
        /// Which call.
        job: JobId,
        /// What came of it.
        outcome: Outcome,
        /// How long its function ran.
        run_us: u64,
        /// Processor time of that.
        cpu_us: u64,
        /// How long its function and arguments took to be made of what was sent.
        #[serde(default)]
        unpickling_us: u64,
        /// How long what is sent of its result took to be made.
        #[serde(default)]
        pickling_us: u64,
        /// The file of its result, where that is to be kept here.
        #[serde(default)]
        kept: Option<KeptFile>,
    },
}
