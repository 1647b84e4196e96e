/** Inspection of streams. */

export { formatInspection } from './format.js';
export { inspect, type InspectOptions } from './inspect.js';
export { Inspector, type InspectorOptions } from './inspector.js';
export {
  type Inspection,
  type Iteration,
  type LegacyFacts,
  type PageCounts,
  type RecordRow,
  type TmemFacts,
  type TmemPoolRow,
  type VcpuRow,
} from './report.js';
