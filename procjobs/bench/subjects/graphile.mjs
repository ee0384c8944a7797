// graphile-worker: with CONCURRENCY > 100 as its documentation tunes it, a local queue of 500 and batched completion.
import { load, main } from "./counter.mjs";

const { run, runMigrations, makeWorkerUtils, Logger } = load("graphile-worker");
const logger = new Logger(() => () => {});

await main(
  (connectionString) => runMigrations({ connectionString, logger }),
  async (connectionString) => {
    const utils = await makeWorkerUtils({ connectionString, logger });
    return {
      one: (at) => utils.addJob("noop", at ? { at } : {}),
      many: (size) => utils.addJobs(Array.from({ length: size }, () => ({ identifier: "noop", payload: {} }))),
    };
  },
  async (connectionString, concurrency, counter) => {
    const tuned = { localQueue: { size: 500 }, completeJobBatchDelay: 0, failJobBatchDelay: 0 };
    const runner = await run({
      logger,
      noHandleSignals: true,
      taskList: { noop: async (payload) => counter.start(payload.at) },
      preset: {
        worker: {
          connectionString,
          concurrentJobs: concurrency,
          maxPoolSize: 12,
          ...(concurrency > 100 ? tuned : {}),
        },
      },
    });
    return () => runner.stop();
  },
);
