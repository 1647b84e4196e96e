/** Inspection of streams. */

export { formatInspection } from './format.js';
export { inspect, type InspectOptions } from './inspect.js';
export { Inspector, type InspectorOptions } from './inspector.js';
export { type Inspection, type Iteration, type PageCounts, type RecordRow, type VcpuRow } from './report.js';
