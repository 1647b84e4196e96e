import { defineConfig } from 'vitest/config';

export default defineConfig({
  test: {
    include: ['test/**/*.test.ts'],
    // Tests load lib/ as TypeScript; the worker thread of a simulated guest needs JavaScript.
    globalSetup: ['test/setup/guest-worker.ts'],
    // One process per file: the addon, worker threads and `process` handlers of one file cannot reach another.
    pool: 'forks',
    // Generous, so that a loaded machine fails no test; a hang still ends.
    testTimeout: 60_000,
    hookTimeout: 120_000,
    teardownTimeout: 20_000,
    expect: { poll: { timeout: 20_000 } },
    restoreMocks: true,
    coverage: {
      provider: 'v8',
      include: ['lib/**'],
      reportsDirectory: 'coverage',
    },
  },
});
