// out[t] = x[t] / rms(x[t]) * weight, for a workgroup per token; x (T, COLUMNS) from row batch.first_row on.
// With ADDING, x += each token's experts, weighted, before that; y (P, COLUMNS).
const THREADS = 256u;

@group(0) @binding(0) var<storage, read_write> x: array<vec4<f32>>;
@group(0) @binding(1) var<storage, read> y: array<vec4<f32>>;
@group(0) @binding(2) var<storage, read> places: array<u32>;  // (T, ACTIVE)
@group(0) @binding(3) var<storage, read> expert_weights: array<f32>;  // (T, ACTIVE)
@group(0) @binding(4) var<storage, read> weight: array<vec4<f32>>;
@group(0) @binding(5) var<storage, read_write> out: array<vec4<f32>>;
@group(0) @binding(6) var<uniform> batch: Batch;

fn experts(token: u32, i: u32) -> vec4<f32> {
  var sum = vec4<f32>(0.0);
  for (var a = 0u; a < ACTIVE; a++) {
    let pair = token * ACTIVE + a;
    sum += expert_weights[pair] * y[places[pair] * (COLUMNS / 4u) + i];
  }
  return sum;
}

@compute @workgroup_size(THREADS)
fn main(@builtin(workgroup_id) id: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
  let row = (batch.first_row + id.x) * (COLUMNS / 4u);
  var sum = 0.0;
  for (var i = thread; i < COLUMNS / 4u; i += THREADS) {
    var v = x[row + i];
    if (ADDING) {
      v += experts(batch.first_row + id.x, i);
      x[row + i] = v;
    }
    sum += dot(v, v);
  }
  let factor = 1.0 / sqrt(sum_of(sum, thread) / f32(COLUMNS) + EPS);
  for (var i = thread; i < COLUMNS / 4u; i += THREADS) {
    out[id.x * (COLUMNS / 4u) + i] = x[row + i] * factor * weight[i];
  }
}
