// Whether sums over a workgroup are right: out (T, 2) f32, of x (T, THREADS) the sum and the largest.
@group(0) @binding(0) var<storage, read> x: array<f32>;
@group(0) @binding(1) var<storage, read_write> out: array<vec2<f32>>;

@compute @workgroup_size(THREADS)
fn main(@builtin(workgroup_id) id: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
  let value = x[id.x * THREADS + thread];
  let sum = sum_of(value, thread);
  workgroupBarrier();
  let most = largest_of(value, thread);
  if (thread == 0u) {
    out[id.x] = vec2<f32>(sum, most);
  }
}
