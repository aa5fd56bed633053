// Sums over a workgroup of THREADS, half of them at a time. Between two calls of one function there has to be a
// barrier.
var<workgroup> reduced: array<f32, THREADS>;

fn sum_of(value: f32, thread: u32) -> f32 {
  reduced[thread] = value;
  for (var half = THREADS / 2u; half > 0u; half >>= 1u) {
    workgroupBarrier();
    if (thread < half) {
      reduced[thread] += reduced[thread + half];
    }
  }
  workgroupBarrier();
  return reduced[0];
}

fn largest_of(value: f32, thread: u32) -> f32 {
  reduced[thread] = value;
  for (var half = THREADS / 2u; half > 0u; half >>= 1u) {
    workgroupBarrier();
    if (thread < half) {
      reduced[thread] = max(reduced[thread], reduced[thread + half]);
    }
  }
  workgroupBarrier();
  return reduced[0];
}
