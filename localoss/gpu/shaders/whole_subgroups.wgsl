// Sums over a workgroup of THREADS where the GPU adds up a subgroup, 4 threads or more, by itself: one barrier
// instead of 9. Which threads a subgroup has doesn't matter. As whole_tree.wgsl's otherwise.
var<private> subgroup_number: u32;  // main begins with it: see sources.py
var<private> subgroup_count: u32;
var<private> subgroup_place: u32;  // of this thread in it
var<workgroup> reduced: array<f32, THREADS / 4u>;

fn sum_of(value: f32, thread: u32) -> f32 {
  let its = subgroupAdd(value);
  if (subgroup_place == 0u) {
    reduced[subgroup_number] = its;
  }
  workgroupBarrier();
  var sum = 0.0;
  for (var i = 0u; i < subgroup_count; i++) {
    sum += reduced[i];
  }
  return sum;
}

fn largest_of(value: f32, thread: u32) -> f32 {
  let its = subgroupMax(value);
  if (subgroup_place == 0u) {
    reduced[subgroup_number] = its;
  }
  workgroupBarrier();
  var most = reduced[0];
  for (var i = 1u; i < subgroup_count; i++) {
    most = max(most, reduced[i]);
  }
  return most;
}
