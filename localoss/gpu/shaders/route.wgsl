// Choose each token's experts: the ACTIVE largest of logits + bias, in falling order, and their softmax. Of
// equals, the lower expert comes first. A workgroup per token; logits (T, LOGITS_ROW). With ALONE, for one token,
// it also writes what sort.wgsl would.
const THREADS = 64u;
const NONE = -3.4e38;

@group(0) @binding(0) var<storage, read> logits: array<f32>;
@group(0) @binding(1) var<storage, read> bias: array<f32>;
@group(0) @binding(2) var<storage, read_write> expert_ids: array<u32>;  // (T, ACTIVE)
@group(0) @binding(3) var<storage, read_write> expert_weights: array<f32>;  // (T, ACTIVE)
@group(0) @binding(4) var<storage, read_write> sources: array<u32>;
@group(0) @binding(5) var<storage, read_write> places: array<u32>;
@group(0) @binding(6) var<storage, read_write> runs: array<vec4<u32>>;
var<workgroup> left: array<f32, EXPERTS>;
var<workgroup> values: array<f32, THREADS>;
var<workgroup> experts: array<u32, THREADS>;
var<workgroup> chosen: array<f32, ACTIVE>;

@compute @workgroup_size(THREADS)
fn main(@builtin(workgroup_id) id: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
  for (var e = thread; e < EXPERTS; e += THREADS) {
    left[e] = logits[id.x * LOGITS_ROW + e] + bias[e];
  }
  for (var a = 0u; a < ACTIVE; a++) {
    workgroupBarrier();
    var value = NONE;
    var expert = min(thread, EXPERTS - 1u);
    for (var e = thread; e < EXPERTS; e += THREADS) {
      if (left[e] > value) {
        value = left[e];
        expert = e;
      }
    }
    values[thread] = value;
    experts[thread] = expert;
    for (var half = THREADS / 2u; half > 0u; half >>= 1u) {
      workgroupBarrier();
      if (thread < half) {
        let other = values[thread + half];
        let lower = experts[thread + half] < experts[thread];
        if (other > values[thread] || (other == values[thread] && lower)) {
          values[thread] = other;
          experts[thread] = experts[thread + half];
        }
      }
    }
    if (thread == 0u) {
      chosen[a] = values[0];
      expert_ids[id.x * ACTIVE + a] = experts[0];
      left[experts[0]] = NONE;
    }
  }
  if (thread == 0u) {
    var total = 0.0;
    for (var a = 0u; a < ACTIVE; a++) {
      total += exp(chosen[a] - chosen[0]);
    }
    for (var a = 0u; a < ACTIVE; a++) {
      expert_weights[id.x * ACTIVE + a] = exp(chosen[a] - chosen[0]) / total;
      if (ALONE) {
        runs[a] = vec4<u32>(expert_ids[a], a, 1u, 0u);
        sources[a] = 0u;
        places[a] = a;
      }
    }
  }
}
