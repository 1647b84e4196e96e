/**
 * `xen-migration`: saves, restores, live-migrates, verifies and inspects Xen guests in the Migration v2 formats.
 *
 * Long operations come in two forms: `startX` returns a job (`result`, `status`, `update`, `cancel`), `x` its `result`.
 * They work on a `Host`; `xen-migration/testing` has one that needs no Xen. The codecs are in `xen-migration/stream`.
 *
 * @module
 */
export { VERSION } from './version.js';

// Whole guests over a connection.
export { migrate, receive, startMigrate, startReceive } from './migrate/migrate.js';
export {
  recover,
  type RecoverOptions,
  type RecoveryFinding,
  type RecoveryOutcome,
} from './migrate/recover.js';
export type { MigrationProtocol } from './migrate/open-wire.js';
export type { Reconnect } from './migrate/opening.js';
export { MigrationBudget, type BudgetLimits, type BudgetStatus } from './migrate/budget.js';
export type {
  MigrateJob,
  MigrateOptions,
  MigrateResult,
  MigrationOffer,
  MigrationTimeouts,
  ReceiveJob,
  ReceiveOptions,
  ReceiveResult,
} from './migrate/types.js';

// Guests into streams and out of them.
export { save, startSave, type SaveTarget } from './save/save.js';
export { xenDefaultPolicy } from './save/policy.js';
export type { JobBudget, JobTicket, Throttle } from './save/throttle.js';
export type {
  PrecopyDecision,
  PrecopyPolicy,
  PrecopyStats,
  SaveFormat,
  SaveJob,
  SaveLimits,
  SaveOptions,
  SaveResult,
} from './save/types.js';
export { restore, startRestore, type RestoreFrom } from './restore/restore.js';
export type { RestoreFormat, RestoreJob, RestoreOptions, RestoreResult } from './restore/types.js';

// Looking at streams.
export { verify, type VerifyOptions } from './stream/verify/verify.js';
export type { Severity, VerifyFinding, VerifyReport, VerifySummary } from './stream/verify/report.js';
export { formatInspection, inspect, type InspectOptions } from './stream/inspect/index.js';
export type { Inspection, Iteration, PageCounts, RecordRow, VcpuRow } from './stream/inspect/index.js';
export type { ScannedFormat } from './stream/scan.js';

// What every job has in common.
export { channels, type Job, type JobOptions } from './job.js';
export type { DowntimeSplit, IterationStats, JobPhase, JobState, Progress } from './progress.js';
export {
  AddonError,
  CancelledError,
  DeviceModelError,
  GuestError,
  HypercallError,
  PeerError,
  StreamFormatError,
  TimeoutError,
  TransportError,
  UsageError,
  XenMigrationError,
  XenstoreError,
  type AddonErrorCode,
  type ErrorFacts,
  type GuestPlace,
  type GuestState,
  type GuestWhereabouts,
  type StreamPlace,
  type XenstoreFacts,
} from './errors.js';

export { XlError, type XlFacts } from './toolstack/xl/error.js';

// The host that this machine is.
export { openXenHost, XenHost, type XenHostOptions } from './host/xen/host.js';

// The ports: implement them for another hypervisor or toolstack.
export { INVALID_FRAME, ShutdownReason } from './host/host.js';
export type {
  CpuPolicy,
  Domain,
  DomainInfo,
  DomainUse,
  Host,
  LogDirtyResult,
  MachineToPhys,
  PageMapping,
  TscInfo,
  VcpuStateKind,
  XenVersion,
} from './host/host.js';
export type { GuestWidth } from './abi/pv.js';
export type { MigrationNote, NoteRole, NoteStore } from './toolstack/notes.js';
export type {
  BackendWiring,
  DeviceModelState,
  MissingStaticData,
  SuspendOptions,
  Toolstack,
} from './toolstack/toolstack.js';
export { probeXen } from './host/xen/addon.js';
export type { XenProbe } from './host/xen/addon.js';
export type { AddonBuild, HypervisorGuests, HypervisorVersion } from './host/xen/native.js';

// Byte streams: implement the two for another transport.
export type { ByteSink, ByteSource } from './transport/types.js';
export { openSink, openSource, type OpenSinkOptions, type OpenSourceOptions } from './transport/open.js';

// Peers by their address: TCP, TLS, Unix sockets, ssh, commands, sockets of systemd.
export {
  connectPeer,
  listenForPeers,
  parsePeerAddress,
  peerAddressText,
  stdioPeer,
  type ConnectOptions,
  type ListenOptions,
  type PeerAddress,
  type PeerListener,
  type PeerOrigin,
  type PeerTls,
} from './transport/peer/index.js';
export { compressionsHere, type Compression } from './transport/compress.js';
