// Order the (token, expert) pairs by expert, and cut each expert's into runs of up to M: one workgroup.
const THREADS = 256u;

@group(0) @binding(0) var<storage, read> expert_ids: array<u32>;  // (T, ACTIVE)
@group(0) @binding(1) var<storage, read_write> sources: array<u32>;  // (T * ACTIVE,): the token at each place
@group(0) @binding(2) var<storage, read_write> places: array<u32>;  // (T, ACTIVE): the place of each pair
@group(0) @binding(3) var<storage, read_write> runs: array<vec4<u32>>;  // expert, first place, places
@group(0) @binding(4) var<uniform> batch: Batch;
var<workgroup> counts: array<atomic<u32>, EXPERTS>;  // of pairs; then the next free place

@compute @workgroup_size(THREADS)
fn main(@builtin(local_invocation_index) thread: u32) {
  let pairs = batch.tokens * ACTIVE;
  for (var e = thread; e < EXPERTS; e += THREADS) {
    atomicStore(&counts[e], 0u);
  }
  workgroupBarrier();
  for (var pair = thread; pair < pairs; pair += THREADS) {
    atomicAdd(&counts[expert_ids[pair]], 1u);
  }
  workgroupBarrier();
  if (thread == 0u) {
    var place = 0u;
    var run = 0u;
    for (var e = 0u; e < EXPERTS; e++) {
      let end = place + atomicLoad(&counts[e]);
      atomicStore(&counts[e], place);
      for (; place < end; place = min(place + M, end)) {
        runs[run] = vec4<u32>(e, place, min(M, end - place), 0u);
        run++;
      }
    }
    for (; run < batch.runs; run++) {
      runs[run] = vec4<u32>(0u);
    }
  }
  workgroupBarrier();
  for (var pair = thread; pair < pairs; pair += THREADS) {
    let place = atomicAdd(&counts[expert_ids[pair]], 1u);
    sources[place] = pair / ACTIVE;
    places[pair] = place;
  }
}
