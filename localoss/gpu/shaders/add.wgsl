// x (T, COLUMNS) += each token's experts, weighted; y (P, COLUMNS). A workgroup per token.
const THREADS = 256u;

@group(0) @binding(0) var<storage, read> y: array<vec4<f32>>;
@group(0) @binding(1) var<storage, read> places: array<u32>;  // (T, ACTIVE)
@group(0) @binding(2) var<storage, read> expert_weights: array<f32>;  // (T, ACTIVE)
@group(0) @binding(3) var<storage, read_write> x: array<vec4<f32>>;

@compute @workgroup_size(THREADS)
fn main(@builtin(workgroup_id) id: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
  for (var i = thread; i < COLUMNS / 4u; i += THREADS) {
    var sum = x[id.x * (COLUMNS / 4u) + i];
    for (var a = 0u; a < ACTIVE; a++) {
      let pair = id.x * ACTIVE + a;
      sum += expert_weights[pair] * y[places[pair] * (COLUMNS / 4u) + i];
    }
    x[id.x * (COLUMNS / 4u) + i] = sum;
  }
}
