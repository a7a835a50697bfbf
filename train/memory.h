// What this process holds in memory, in MiB. Linux counts the most it ever held, and forgets it on demand.
#pragma once

namespace heed {

double resident_mb();
double peak_rss_mb();  // the largest resident size so far, or since forget_peak()
bool forget_peak();    // gives free memory back first; false where the system cannot forget

}  // namespace heed
