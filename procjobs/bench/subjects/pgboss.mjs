// pg-boss: four loops that fetch CONCURRENCY jobs each, run them and complete them; what is counted is completed.
import { setTimeout as sleep } from "node:timers/promises";

import { load, main } from "./counter.mjs";

const loaded = load("pg-boss");
const PgBoss = loaded.PgBoss ?? loaded.default ?? loaded;
const LOOPS = 4;

async function open(connectionString) {
  const boss = new PgBoss({ connectionString, schedule: false, max: LOOPS + 1 });
  boss.on("error", () => {});
  await boss.start();
  return boss;
}

await main(
  async (dsn) => {
    const boss = await open(dsn);
    await boss.createQueue("noop");
    await boss.stop({ graceful: false });
  },
  async (dsn) => {
    const boss = await open(dsn);
    return {
      one: (at) => boss.send("noop", at ? { at } : {}),
      many: (size) => boss.insert(Array.from({ length: size }, () => ({ name: "noop", data: {} }))),
    };
  },
  async (dsn, concurrency, counter) => {
    const boss = await open(dsn);
    let stopped = false;
    const loop = async () => {
      while (!stopped) {
        const jobs = await boss.fetch("noop", { batchSize: concurrency });
        for (const job of jobs) counter.start(job.data?.at);
        if (jobs.length) await boss.complete("noop", jobs.map((job) => job.id));
        else await sleep(500);
      }
    };
    const loops = Array.from({ length: LOOPS }, loop);
    return async () => {
      stopped = true;
      await Promise.all(loops);
    };
  },
);
