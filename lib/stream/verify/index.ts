/** Verification of streams. */

export { type Severity, type VerifyFinding, type VerifyReport, type VerifySummary } from './report.js';
export { Verifier, type VerifierOptions } from './verifier.js';
export { verify, type VerifyOptions } from './verify.js';
