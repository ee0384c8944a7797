// What counter.py is, for contenders on Node: the same file, the same command line.
import fs from "node:fs";
import { createRequire } from "node:module";
import { setTimeout as sleep } from "node:timers/promises";

export const load = createRequire(`${process.env.PROCJOBS_BENCH_NODE}/index.js`);

const MOST_WAITS = 4096;
const BATCH = 1000;
const PACE = 20;

export class Counter {
  constructor(path) {
    this.numbers = new BigInt64Array(3 + MOST_WAITS);
    this.bytes = Buffer.from(this.numbers.buffer);
    this.file = fs.openSync(`${path}.${process.pid}`, "w+");
    this.starts = 0;
    this.waits = 0;
    this.write();
    setInterval(() => this.write(), 10);
  }

  start(at) {
    const now = process.hrtime.bigint();
    if (this.starts === 0) this.numbers[1] = now;
    this.numbers[2] = now;
    this.starts += 1;
    if (at && this.waits < MOST_WAITS) {
      this.numbers[3 + this.waits] = now - BigInt(at);
      this.waits += 1;
    }
  }

  write() {
    this.numbers[0] = BigInt(this.starts);
    fs.writeSync(this.file, this.bytes, 0, this.bytes.length, 0);
  }
}

async function timed(mode, count, { one, many }) {
  if (mode === "paced") await one();
  const began = process.hrtime.bigint();
  if (mode === "one") {
    for (let done = 0; done < count; done += 1) await one();
  } else if (mode === "many") {
    for (let done = 0; done < count; done += BATCH) await many(Math.min(BATCH, count - done));
  } else if (mode === "paced") {
    for (let done = 0; done < count; done += 1) {
      await sleep(PACE);
      await one(process.hrtime.bigint().toString());
    }
  } else {
    throw new Error(`there is no way to enqueue by ${mode}`);
  }
  return Number(process.hrtime.bigint() - began) / 1e9;
}

// prepare(dsn); enqueue(dsn): {one, many}; drain(dsn, concurrency, counter): a function that stops.
export async function main(prepare, enqueue, drain) {
  const [verb, dsn, ...rest] = process.argv.slice(2);
  if (verb === "prepare") {
    await prepare(dsn);
    process.exit(0);
  } else if (verb === "enqueue") {
    console.log(await timed(rest[0], Number(rest[1]), await enqueue(dsn)));
    process.exit(0);
  } else {
    const counter = new Counter(rest[1]);
    const stop = await drain(dsn, Number(rest[0]), counter);
    process.on("SIGTERM", async () => {
      counter.write();
      await Promise.race([stop(), sleep(5000)]);
      counter.write();
      process.exit(0);
    });
  }
}
