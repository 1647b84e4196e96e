/** A test runner for places that have none: collects what the contract defines, then runs it one by one. */
import type { ContractRunner } from './subject.js';

type Body = () => Promise<void>;

/** A group of tests. */
interface Group {
  readonly name: string;
  readonly parent: Group | undefined;
  readonly before: Body[];
  readonly after: Body[];
}

interface Test {
  readonly name: string;
  readonly group: Group;
  readonly body: Body;
}

export interface TestResult {
  readonly name: string;
  readonly ms: number;
  /** undefined: passed. */
  readonly error: unknown;
}

export class Collector implements ContractRunner {
  readonly #tests: Test[] = [];
  #group: Group | undefined;

  readonly describe = (name: string, body: () => void): void => {
    const parent = this.#group;
    const full = parent === undefined ? name : `${parent.name} > ${name}`;
    this.#group = { name: full, parent, before: [], after: [] };
    body();
    this.#group = parent;
  };

  readonly it = (name: string, body: Body): void => {
    const group = this.#inside();
    this.#tests.push({ name: `${group.name} > ${name}`, group, body });
  };

  readonly beforeEach = (body: Body): void => void this.#inside().before.push(body);

  readonly afterEach = (body: Body): void => void this.#inside().after.push(body);

  /**
   * Runs the tests that were collected, in their order.
   *
   * @param only Part of the names of the tests to run
   * @param tell Called after each test
   */
  async run(only = '', tell: (result: TestResult) => void = () => undefined): Promise<TestResult[]> {
    const results: TestResult[] = [];
    for (const test of this.#tests) {
      if (!test.name.includes(only)) continue;
      const began = performance.now();
      const error = await runOne(test);
      const result = { name: test.name, ms: performance.now() - began, error };
      results.push(result);
      tell(result);
    }
    return results;
  }

  #inside(): Group {
    if (this.#group === undefined) throw new TypeError('a test outside of any group');
    return this.#group;
  }
}

/** Returns what it threw, the first of it. What comes after a test comes after a failure, too. */
async function runOne({ group, body }: Test): Promise<unknown> {
  const groups: Group[] = [];
  for (let at: Group | undefined = group; at !== undefined; at = at.parent) groups.unshift(at);
  const before = groups.flatMap((g) => g.before);
  const after = groups.reverse().flatMap((g) => g.after);
  let failure: unknown;
  try {
    for (const step of [...before, body]) await step();
  } catch (error) {
    failure = error ?? new Error('failed without a reason');
  }
  for (const step of after) {
    try {
      await step();
    } catch (error) {
      failure ??= error;
    }
  }
  return failure;
}
