// out[t] = x[t] / rms(x[t]) * weight, for a workgroup per token; x (T, COLUMNS) from row batch.first_row on.
const THREADS = 256u;

@group(0) @binding(0) var<storage, read> x: array<vec4<f32>>;
@group(0) @binding(1) var<storage, read> weight: array<vec4<f32>>;
@group(0) @binding(2) var<storage, read_write> out: array<vec4<f32>>;
@group(0) @binding(3) var<uniform> batch: Batch;
var<workgroup> squares: array<f32, THREADS>;

@compute @workgroup_size(THREADS)
fn main(@builtin(workgroup_id) id: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
  let row = (batch.first_row + id.x) * (COLUMNS / 4u);
  var sum = 0.0;
  for (var i = thread; i < COLUMNS / 4u; i += THREADS) {
    let v = x[row + i];
    sum += dot(v, v);
  }
  squares[thread] = sum;
  for (var half = THREADS / 2u; half > 0u; half >>= 1u) {
    workgroupBarrier();
    if (thread < half) {
      squares[thread] += squares[thread + half];
    }
  }
  workgroupBarrier();
  let factor = 1.0 / sqrt(squares[0] / f32(COLUMNS) + EPS);
  for (var i = thread; i < COLUMNS / 4u; i += THREADS) {
    out[id.x * (COLUMNS / 4u) + i] = x[row + i] * factor * weight[i];
  }
}
