// Add up `products`, of which each thread wrote those of its half of the rows: see tiles.wgsl.
fn add_up(thread: u32) {
  for (var distance = THREADS / 2u; distance > 1u; distance >>= 1u) {
    workgroupBarrier();
    if (thread < distance) {
// each m
      products[@u * THREADS + thread] += products[@u * THREADS + thread + distance];
// end
    }
  }
  workgroupBarrier();
}
