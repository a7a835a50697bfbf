// Everything of heed in one include; each folder's headers stand alone, too.
#pragma once

#include "datasets/dataset.h"
#include "graph/graph.h"
#include "kernels/attention.h"
#include "kernels/device.h"
#include "kernels/formula.h"
#include "kernels/gradient_check.h"
#include "kernels/make_score.h"
#include "layers/layers.h"
#include "layers/models.h"
#include "sampling/keys.h"
#include "sampling/mask.h"
#include "train/checkpoint.h"
#include "train/recipes.h"
#include "train/sweep.h"
#include "train/train.h"
